"""What the pretraining example is made of: text, vocabulary, masks, learning rate, state."""

from __future__ import annotations

import gzip
import hashlib
import math
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pretrain_bert
import pytest
import tokenizers
import torch
import transformers
from contracts.forked import WATCHED_BERT, Child
from hypothesis import given, settings
from hypothesis import strategies as st
from pretrain_bert import (
    IGNORED,
    Pretraining,
    Vocabulary,
    bert,
    characters,
    held_out_loss,
    lr_factor,
    mask_tokens,
    masked_losses,
    parser,
    read_text,
    split,
    subwords,
    surrounded,
)
from transformers import get_scheduler

UNK, CLS, SEP, MASK, SIZE = 1, 2, 3, 4, 50
ORDINARY = torch.arange(5, SIZE)
PLAIN = Vocabulary(lambda _: np.zeros(0), SIZE, ORDINARY, MASK)
ENDS = Vocabulary(lambda _: np.zeros(0), SIZE, ORDINARY, MASK, before=(CLS,), after=(SEP,))

# ------------------------------------------------------------------ the text


@pytest.mark.slow
def test_the_default_text_is_the_same_in_every_process_and_imports_nothing() -> None:
    program = (
        "import pretrain_bert, hashlib, os, sys\n"
        "os.environ['HOME'] = '/nonexistent'\n"
        "before = set(sys.modules)\n"
        "text = chr(0).join(pretrain_bert.python_documentation())\n"
        "print(hashlib.sha256(text.encode()).hexdigest())\n"
        "print([m for m in set(sys.modules) - before if not m.startswith('_sysconfigdata')])\n"
        "print(hash('the'))"
    )
    folder = str(Path(pretrain_bert.__file__).parent)
    _, output, errors = Child(program, imports=WATCHED_BERT, path=folder).communicate()
    found, imported, hashed = output.splitlines() or errors.splitlines()
    assert imported == "[]"
    assert int(hashed) != hash("the")  # so that an order of strings shows
    text = "\0".join(pretrain_bert.python_documentation())
    assert 1_000_000 < len(text) < 5_000_000
    assert found == hashlib.sha256(text.encode()).hexdigest()


def test_docstrings_come_in_the_order_of_the_definitions() -> None:
    source = (
        '"""Module."""\nclass A:\n    """Class."""\n    if nowhere:\n        def f(self):\n'
        '            """Method."""\n            def g():\n                """Inner."""\n'
        '    else:\n        async def f(self):\n            """Other."""\n'
    )
    found = list(pretrain_bert.docstrings(pretrain_bert.ast.parse(source)))
    assert found == ["Module.", "Class.", "Method.", "Inner.", "Other."]


def test_a_file_a_folder_and_their_urls(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("three\n")
    (tmp_path / "b.txt").write_text("two\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n"))
    for place in (str(tmp_path), tmp_path.as_uri()):
        assert read_text(place) == ["one\n", "two\n", "three\n"]
    for place in (str(tmp_path / "b.txt"), (tmp_path / "b.txt").as_uri()):
        assert read_text(place) == ["two\n"]
    with fsspec.open("memory://text-test/x.txt", "w", encoding="utf-8") as file:
        file.write("from memory")
    assert read_text("memory://text-test") == ["from memory"]


def test_nothing_there_is_refused_by_name(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere.txt"):
        with pytest.raises(ValueError, match=r"Expected `--text` to be .*found no '.*'"):
            read_text(str(place))


@given(
    num_tokens=st.integers(200, 3_000),
    num_held_out=st.integers(1, 8),
    length=st.integers(2, 5),
)
def test_held_out_and_training_text_are_disjoint(
    num_tokens: int, num_held_out: int, length: int
) -> None:
    train, held_out = split(np.arange(num_tokens, dtype=np.int32), num_held_out, length)
    assert held_out.shape == (num_held_out, length)
    assert (np.diff(held_out, axis=1) == 1).all()  # runs of the text
    first, second = set(held_out.ravel().tolist()), set(train.tolist())
    assert len(first) == num_held_out * length
    assert not first & second
    assert first | second == set(range(num_tokens))
    assert (np.diff(train) > 0).all()  # the order of the text


@pytest.mark.parametrize("num_tokens", [0, 9, 49])
def test_a_text_that_is_too_short_is_refused_with_the_length_needed(num_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"at least 50 tokens, got {num_tokens}"):
        split(np.arange(num_tokens, dtype=np.int32), 2, 5)
    assert len(split(np.arange(50, dtype=np.int32), 2, 5)[0]) == 40


# ------------------------------------------------------------------ vocabularies


@pytest.mark.slow
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=40), min_size=1, max_size=4))
def test_characters_against_a_dictionary_and_a_loop(texts: list[str]) -> None:
    text = "".join(" ".join(text.lower().split()) + " " for text in texts)
    ids = {character: 5 + i for i, character in enumerate(sorted(set(text)))}
    vocabulary = characters(texts)
    assert vocabulary.size == 5 + len(ids)
    assert vocabulary.encode(texts).tolist() == [ids[character] for character in text]
    assert vocabulary.name == "".join(ids)


def test_characters_that_are_rarer_than_one_in_a_hundred_thousand_are_unknown() -> None:
    texts = ["ab" * 199_998 + "éé" + "ü"]  # 2 and 1 of 400,000: below 4
    vocabulary = characters([*texts, "e" * 5])
    assert vocabulary.name == "abe"
    assert Counter(vocabulary.encode(texts).tolist())[UNK] == 3 + 1  # the space is rare too


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer in a folder, with special tokens among the others, as BERT's."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["[PAD]", "a", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"bcdefghijklmnopqrstuvwxyz"]
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    fast.save_pretrained(folder)
    return str(folder)


def test_a_tokenizer_of_transformers(tokenizer: str) -> None:
    vocabulary = subwords(tokenizer)
    assert (vocabulary.size, vocabulary.mask) == (31, 5)
    assert (vocabulary.before, vocabulary.after) == ((3,), (4,))
    assert vocabulary.ordinary.tolist() == [1, *range(6, 31)]
    assert vocabulary.encode(["abc", "a?"]).tolist() == [1, 6, 7, 1, 2]


# ------------------------------------------------------------------ masks


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _tokens(num: int, length: int) -> torch.Tensor:
    return torch.randint(5, SIZE, (num, length), generator=_generator(99))


def _assert_share(hits: int, trials: int, share: float) -> None:
    """Within five standard deviations of a binomial count."""
    assert abs(hits - share * trials) < 5 * math.sqrt(trials * share * (1 - share))


def test_fifteen_percent_are_hidden_eighty_ten_ten() -> None:
    tokens = _tokens(1_000, 128)  # long: hardly ever drawn again
    batch = mask_tokens(tokens, PLAIN, _generator())
    masked = batch["labels"] != IGNORED
    inputs, originals = batch["input_ids"][masked], tokens[masked]
    num_masked = int(masked.sum())
    _assert_share(num_masked, tokens.numel(), 0.15)
    _assert_share(int((inputs == MASK).sum()), num_masked, 0.8)
    # of the 10 % replaced ones, 1 in 45 is replaced by itself
    others = (inputs != MASK) & (inputs != originals)
    _assert_share(int(others.sum()), num_masked, 0.1 * 44 / 45)
    _assert_share(int((inputs == originals).sum()), num_masked, 0.1 + 0.1 / 45)
    assert (batch["labels"][masked] == originals).all()
    assert (batch["input_ids"][~masked] == tokens[~masked]).all()


def test_replacements_are_uniform_over_ordinary_tokens() -> None:
    tokens = _tokens(4_000, 128)
    batch = mask_tokens(tokens, PLAIN, _generator())
    inputs = batch["input_ids"][(batch["labels"] != IGNORED) & (batch["input_ids"] != tokens)]
    counts = torch.bincount(inputs[inputs != MASK], minlength=SIZE)
    assert counts[:5].sum() == 0
    for count in counts[5:].tolist():
        _assert_share(count, int(counts.sum()), 1 / 45)


@given(seed=st.integers(0, 1_000), length=st.integers(1, 12))
def test_special_tokens_are_never_masked_and_every_sequence_has_a_mask(
    seed: int, length: int
) -> None:
    tokens = surrounded(_tokens(20, length).numpy(), ENDS)
    tokens[::3, 1:-2] = UNK
    batch = mask_tokens(tokens, ENDS, _generator(seed))
    masked = batch["labels"] != IGNORED
    assert masked.any(dim=1).all()
    assert (tokens[masked] >= 5).all()
    assert (batch["input_ids"][tokens < 5] == tokens[tokens < 5]).all()


def test_masks_follow_from_their_generator_alone() -> None:
    tokens = _tokens(50, 16)
    torch.manual_seed(1)
    first = mask_tokens(tokens, PLAIN, _generator(3))
    torch.manual_seed(2)
    again = mask_tokens(tokens, PLAIN, _generator(3))
    other = mask_tokens(tokens, PLAIN, _generator(4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["labels"], other["labels"])


def test_a_sequence_of_special_tokens_only_is_refused() -> None:
    tokens = _tokens(3, 4)
    tokens[1] = UNK
    with pytest.raises(ValueError, match=r"Expected a known token in each sequence"):
        mask_tokens(tokens, PLAIN, _generator())


# ------------------------------------------------------------------ the loss


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    words = "--layers 2 --hidden 16 --heads 2 --ffn 32 --activation gelu --dropout 0.1"
    return bert(parser().parse_args(words.split()), SIZE).eval()


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1_000))
def test_the_losses_are_those_that_transformers_computes(model: torch.nn.Module, seed: int) -> None:
    batch = mask_tokens(_tokens(9, 12), PLAIN, _generator(seed))
    with torch.no_grad():
        whole = model(**batch).loss
        rows = [model(**{k: v[i : i + 1] for k, v in batch.items()}).loss for i in range(9)]
        torch.testing.assert_close(masked_losses(model, batch).mean(), whole)
        torch.testing.assert_close(held_out_loss(model, batch), torch.stack(rows))


def test_the_gradients_are_those_that_transformers_computes(model: torch.nn.Module) -> None:
    batch = mask_tokens(_tokens(9, 12), PLAIN, _generator())
    gradients = []
    for loss in (model(**batch).loss, masked_losses(model, batch).mean()):
        model.zero_grad()
        loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    model.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


# ------------------------------------------------------------------ the learning rate


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_after_the_warm_up_schedules_are_those_of_transformers(schedule: str) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=5, num_training_steps=30)
    for step in range(1, 31):
        mine = lr_factor(step, schedule=schedule, warmup=5, steps=30)
        if step > 5:
            assert mine == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_every_schedule_warms_up_linearly(schedule: str) -> None:
    factors = [lr_factor(s, schedule=schedule, warmup=4, steps=100) for s in (1, 2, 3, 4)]
    assert factors == [0.25, 0.5, 0.75, 1.0]
    assert lr_factor(1, schedule=schedule, warmup=0, steps=1) == 1.0


def test_wsd_is_stable_and_then_decays_over_the_last_fifth() -> None:
    factors = [lr_factor(s, schedule="wsd", warmup=0, steps=10) for s in range(1, 11)]
    assert factors == pytest.approx([1.0] * 9 + [0.5])
    assert lr_factor(500, schedule="constant", warmup=10, steps=500) == 1.0


# ------------------------------------------------------------------ the training


def _training(tiny: list[str], *more: str) -> Pretraining:
    return Pretraining(parser().parse_args([*tiny, "--steps", "20", *more]))


def test_batches_are_windows_of_the_text_up_to_both_ends(tiny: list[str]) -> None:
    run = _training(tiny)
    run.text = np.arange(5, 70, dtype=np.int32)
    batches = [run.batch() for _ in range(100)]
    windows = torch.cat(
        [torch.where(b["labels"] == IGNORED, b["input_ids"], b["labels"]) for b in batches]
    )
    assert windows.shape == (800, 16)
    # masked or not, what is known of a window is a run of the text
    assert (windows.diff(dim=1) == 1).all()
    assert (int(windows.min()), int(windows.max())) == (5, 69)


def test_special_tokens_are_part_of_the_length(tiny: list[str], tokenizer: str) -> None:
    batch = _training(tiny, "--tokenizer", tokenizer).batch()["input_ids"]
    assert batch.shape == (8, 16)
    assert (batch[:, 0] == 3).all()
    assert (batch[:, -1] == 4).all()


@pytest.mark.slow
def test_the_loss_falls_and_is_about_ln_of_the_vocabulary_at_first(tiny: list[str]) -> None:
    run = _training(tiny)
    losses = [float(run.step()) for _ in range(20)]
    assert losses[0] == pytest.approx(np.log(run.vocabulary.size), abs=0.2)
    assert np.mean(losses[-5:]) < losses[0] - 0.05
    assert run.steps_done == 20


def test_decay_is_on_matrices_only(tiny: list[str]) -> None:
    run = _training(tiny)
    groups = run.optimizer.param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in run.model.named_parameters():
        is_vector = name.endswith("bias") or "LayerNorm" in name
        assert decay[id(parameter)] == (0.0 if is_vector else 3.0), name


@pytest.mark.slow
def test_the_optimizer_steps_with_the_factor_of_the_step(tiny: list[str]) -> None:
    run = _training(tiny, "--schedule", "linear", "--warmup", "2")
    seen: list[list[float]] = []
    run.optimizer.register_step_post_hook(
        lambda optimizer, *_: seen.append([g["lr"] for g in optimizer.param_groups])
    )
    for _ in range(20):
        run.step()
    factors = [lr_factor(s, schedule="linear", warmup=2, steps=20) for s in range(1, 21)]
    assert seen == [[0.01 * factor] * 2 for factor in factors]


def _bits(run: Pretraining) -> dict[str, torch.Tensor]:
    state = run.state_dict()
    moments = {
        f"{i}.{name}": tensor
        for i, entry in state["optimizer"]["state"].items()
        for name, tensor in entry.items()
    }
    return {**state["model"], **moments, **state["rng"]}


@pytest.mark.slow
def test_a_training_goes_on_from_its_checkpoint_bit_for_bit(
    tmp_path: Path, tiny: list[str]
) -> None:
    whole = _training(tiny)
    losses = [float(whole.step()) for _ in range(12)]

    first = _training(tiny)
    for _ in range(5):
        first.step()
    pretrain_bert.save(tmp_path / "c.pt", first.state_dict())
    second = _training(tiny)
    second.step()  # whatever happened before is forgotten
    torch.manual_seed(77)
    second.load_state_dict(torch.load(tmp_path / "c.pt"))

    assert [float(second.step()) for _ in range(7)] == losses[5:]
    assert second.steps_done == 12
    expected, found = _bits(whole), _bits(second)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_a_checkpoint_that_fails_halfway_leaves_the_last_one(tmp_path: Path) -> None:
    pretrain_bert.save(tmp_path / "c.pt", {"step": 1})
    with pytest.raises((AttributeError, TypeError)):
        pretrain_bert.save(tmp_path / "c.pt", {"step": 2, "bad": lambda: None})
    assert torch.load(tmp_path / "c.pt")["step"] == 1
