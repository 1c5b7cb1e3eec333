"""How the checkpoints of one run are named, and those of several runs."""

from __future__ import annotations

STEPS = (500, 1000, 1500, 2000)


def series(pattern: str, steps: tuple[int, ...] = STEPS, **more: object) -> dict[str, int]:
    """Addresses with ``step``, its ``epoch``, a ``loss`` that rises and falls, and so on."""
    losses = ("3.10", "0.75", "0.81", "0.75")
    return {
        pattern.format(
            step=step,
            k=f"{step / 1000:g}k",
            epoch=step // 900,
            save=i + 1,
            loss=losses[i % 4],
            tokens=f"{step / 250:g}B",
            time=f"2024030{1 + i // 2}-1{i}4500",
            commit=f"a{i}c4e{i}9f",
            **more,
        ): step
        for i, step in enumerate(steps)
    }  # fmt: skip


#: How libraries, and people, name the checkpoints of one run.
CLEAN = {
    "transformers": "run/checkpoint-{step}",
    "Lightning": "logs/version_0/checkpoints/epoch={epoch}-step={step}.ckpt",
    "Lightning, a metric": "checkpoints/epoch={epoch}-step={step}-val_loss={loss}.ckpt",
    "Lightning, nameless": "checkpoints/{epoch}-{step}-{loss}.ckpt",
    "Lightning, negative": "checkpoints/step={step}-elbo=-{loss}.ckpt",
    "Lightning, a metric of one's own": "checkpoints/step={step}-fizz={loss}.ckpt",
    "Composer": "run/ep{epoch}-ba{step}-rank0.pt",
    "fairseq": "run/checkpoint_{save}_{step}.pt",
    "Megatron": "run/iter_{step:07}/mp_rank_00/model_optim_rng.pt",
    "DeepSpeed": "run/global_step{step}/mp_rank_00_model_states.pt",
    "accelerate": "run/step_{step}/model.safetensors",
    "OLMo": "hf://allenai/OLMo-7B@step{step}-tokens{tokens}",
    "Pythia": "hf://EleutherAI/pythia-70m@step{step}",
    "MultiBERTs": "hf://google/multiberts-seed_0-step_{k}",
    "unsharded": "run/step{step}-unsharded/model.pt",
    "epoch beside": "run/model_epoch{epoch}_step{step}.pth",
    "epoch around": "run/epoch_{epoch}/step_{step}.pt",
    "the number alone": "run/{step:08}.pt",
    "the step twice": "run/step_{step}/model_{step}.safetensors",
    "a size": "run/gpt-125m-bs32-lr3e-4/step_{step}.pt",
    "a size beside": "run/gpt-125m_step_{step}.pt",
    "a seed": "run/seed1_step{step}.pt",
    "a folder with a number": "sweep/run_1000/step_{step}.pt",
    "a date of the run": "outputs/2024-03-01/12-30-15/step-{step}.pt",
    "a date of each": "run/{time}_step{step}.pt",
    "a commit of each": "run/step{step}-{commit}.pt",
    "accuracy around": "run/step-{step}_acc-{loss}.pt",
    "hours": "run/step{step}_{save}h.pt",
    "a chain": "zip://run/step-{step}.pt::s3://bucket/run.zip",
    "a signature": "https://host/run/step-{step}.pt?sig={commit}",
    "a port": "s3://bucket/v2/run/step-{step}.pt",
    "without a step, counted": "run/bert_{save}.pt",
    "timm": "run/checkpoint-{save}.pth.tar",
    "without a step, epochs": "run/epoch={save}.ckpt",
    "deep, the step inside": "run/step{step}/unsharded/weights/model.pt",
}
#: Beside these one more that is of the same run by its name.
ROLES = {
    "last": ("run/epoch={epoch}-step={step}.ckpt", "run/last.ckpt"),
    "last again": ("run/epoch={epoch}-step={step}.ckpt", "run/last-v1.ckpt"),
    "best": ("run/step_{step}.pt", "run/best_model.pt"),
    "the run's own folder": ("run/checkpoint-{step}", "run"),
    "final folder": ("run/checkpoint-{step}", "run/final"),
    "final model": ("run/checkpoint-{step}", "run/final_checkpoint"),
    "best beside": ("run/step_{step}.pt", "run/step_3000_best.pt"),
    "final in front": ("run/step_{step}.pt", "run/final_step_3000.pt"),
    "initial": ("run/step_{step}.pt", "run/init.pt"),
    "file in a folder": ("run/step_{step}/model.pt", "run/latest/model.pt"),
}
#: What differs from run to run: a pattern, and two values.
MIXED = {
    "folders": ("{x}/step-{step}.pt", "a", "b"),
    "numbered folders": ("run_{x}/step-{step}.pt", 1, 2),
    "bare numbers": ("{x}/run/step-{step}.pt", 1, 2),
    "a folder inside": ("run{x}/step-{step}.pt", "", "/old"),
    "Lightning's versions": ("logs/version_{x}/checkpoints/epoch={epoch}-step={step}.ckpt", 0, 1),
    "the same names again": ("run/epoch={epoch}-step={step}{x}.ckpt", "", "-v1"),
    "seeds in folders": ("seed{x}/checkpoint-{step}", 1, 2),
    "seeds in front": ("run/seed_{x}-step_{step}.pt", 0, 1),
    "seeds behind": ("run/step_{step}_seed{x}.pt", 0, 1),
    "seeds of the Hub": ("hf://google/multiberts-seed_{x}-step_{k}", 0, 1),
    "learning rates": ("run/lr{x}_step{step}.pt", "1e-3", "3e-4"),
    "learning rates, decimal": ("run/lr=0.{x}-step={step}.ckpt", "1", "01"),
    "weight decay": ("wd-{x}/checkpoint-{step}", 0.1, 0.01),
    "dropout": ("run/step={step}-dropout={x}.ckpt", 0.1, 0.2),
    "batch sizes": ("run/bs{x}_step{step}.pt", 32, 64),
    "sizes": ("run/gpt-{x}-step{step}.pt", "125m", "350m"),
    "sizes of the Hub": ("hf://EleutherAI/pythia-{x}@step{step}", "70m", "160m"),
    "models": ("run/{x}_step{step}.pt", "bert", "roberta"),
    "days": ("outputs/2024-03-0{x}/step-{step}.pt", 1, 2),
    "times": ("outputs/2024-03-01/{x}-30-15/step-{step}.pt", 12, 13),
    "wandb": ("wandb/run-20240301_123015-{x}/files/step-{step}.pt", "k3j5h2a9", "q8s7d6f5"),
    "commits": ("runs/{x}/step-{step}.pt", "a1b2c3d4", "d4c3b2a1"),
    "users": ("s3://bucket/{x}/run/step-{step}.pt", "ann", "bob"),
    "buckets": ("s3://{x}/run/step-{step}.pt", "one", "two"),
    "archives": ("zip://run/step-{step}.pt::s3://bucket/{x}.zip", "a", "b"),
    "storages": ("{x}://bucket/run/step-{step}.pt", "s3", "gs"),
    "stages": ("hf://allenai/OLMo-2@stage{x}-step{step}-tokens{tokens}", 1, 2),
    "folds": ("cv/fold_{x}/step_{step}.pt", 0, 1),
    "trials": ("ray/trial_{x}/checkpoint_{step:06}", "00000", "00001"),
    "networks": ("gan/{x}_step_{step}.pt", "generator", "discriminator"),
    "averages": ("run/step_{step}{x}.pt", "", "_ema"),
    "formats": ("run/step_{step}.{x}", "pt", "safetensors"),
    "conventions": ("run/{x}{step}.pt", "checkpoint-", "step-"),
    "contents say the step": ("out-{x}/ckpt.pt", "shakespeare", "openwebtext"),
    "contents say it, numbered": ("out-{x}/ckpt.pt", 1, 2),
    "contents say it, by name": ("run/{x}.pt", "gpt", "bert"),
}

#: The steps of one run, and those of the other.
ARRANGED = {
    "the same steps": (STEPS, STEPS),
    "one after the other": (STEPS[:2], STEPS[2:]),
    "in turn": (STEPS[::2], STEPS[1::2]),
    "a stray one": (STEPS, (2500,)),
}


def two_runs(
    pattern: str, x: object, y: object, steps: tuple[tuple[int, ...], tuple[int, ...]]
) -> tuple[dict[str, int], dict[str, int]]:
    """Addresses and steps of both; where the contents say the step each has one file."""
    ours, theirs = steps
    if "{step" not in pattern and "{k}" not in pattern:
        ours, theirs = ours[:1], theirs[-1:]
    return series(pattern, ours, x=x), series(pattern, theirs, x=y)
