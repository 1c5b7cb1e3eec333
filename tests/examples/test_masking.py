from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masking import IGNORED, TextSampler, held_out_value, mask_tokens, masked_losses, surrounded
from training import bert
from vocabulary import CLS, MASK, SEP, UNK

SIZE = 50


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _tokens(num: int, length: int, lowest: int = 5) -> torch.Tensor:
    return torch.randint(lowest, SIZE, (num, length), generator=_generator(99))


def _assert_share(hits: int, trials: int, share: float) -> None:
    """Within five standard deviations of a binomial count."""
    assert abs(hits - share * trials) < 5 * math.sqrt(trials * share * (1 - share))


def test_fifteen_percent_are_hidden_eighty_ten_ten():
    tokens = _tokens(1_000, 128)  # long: hardly ever drawn again
    batch = mask_tokens(tokens, SIZE, _generator())
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


def test_replacements_are_uniform_over_ordinary_tokens():
    tokens = _tokens(4_000, 128)
    batch = mask_tokens(tokens, SIZE, _generator())
    inputs = batch["input_ids"][(batch["labels"] != IGNORED) & (batch["input_ids"] != tokens)]
    counts = torch.bincount(inputs[inputs != MASK], minlength=SIZE)
    assert counts[:5].sum() == 0
    for count in counts[5:].tolist():
        _assert_share(count, int(counts.sum()), 1 / 45)


@given(seed=st.integers(0, 1_000), length=st.integers(1, 12))
def test_special_tokens_are_never_masked_and_every_sequence_has_a_mask(seed, length):
    tokens = surrounded(_tokens(20, length).numpy(), (CLS,), (SEP,))
    tokens[::3, 1:-2] = UNK
    batch = mask_tokens(tokens, SIZE, _generator(seed))
    masked = batch["labels"] != IGNORED
    assert masked.any(dim=1).all()
    assert (tokens[masked] >= 5).all()
    assert (batch["input_ids"][tokens < 5] == tokens[tokens < 5]).all()


def test_masks_follow_from_their_generator_alone():
    tokens = _tokens(50, 16)
    torch.manual_seed(1)
    first = mask_tokens(tokens, SIZE, _generator(3))
    torch.manual_seed(2)
    again = mask_tokens(tokens, SIZE, _generator(3))
    other = mask_tokens(tokens, SIZE, _generator(4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["labels"], other["labels"])


def test_a_sequence_of_special_tokens_only_is_refused():
    tokens = _tokens(3, 4)
    tokens[1] = UNK
    with pytest.raises(ValueError, match=r"Expected a token other than \[UNK\]"):
        mask_tokens(tokens, SIZE, _generator())


# ------------------------------------------------------------------ batches


def _sampler(generator: torch.Generator, **ends: tuple[int, ...]) -> TextSampler:
    stream = np.arange(5, SIZE, dtype=np.int32)
    return TextSampler(stream, 30, 8, SIZE, generator, **ends)


def _originals(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    labels = batch["labels"]
    return torch.where(labels == IGNORED, batch["input_ids"], labels)


def test_batches_are_windows_of_the_stream_up_to_both_ends():
    sampler = _sampler(_generator())
    windows = torch.cat([_originals(sampler.batch()) for _ in range(40)])
    assert windows.shape == (1_200, 8)
    assert (windows.diff(dim=1) == 1).all()
    assert (int(windows.min()), int(windows.max())) == (5, SIZE - 1)


def test_prefix_and_suffix_are_part_of_the_length():
    tokens = _originals(_sampler(_generator(), prefix=(CLS,), suffix=(SEP,)).batch())
    assert tokens.shape == (30, 8)
    assert (tokens[:, 0] == CLS).all()
    assert (tokens[:, -1] == SEP).all()
    assert (tokens[:, 1:-1].diff(dim=1) == 1).all()


def test_the_state_of_the_generator_is_the_state_of_the_sampler():
    generator = _generator()
    sampler = _sampler(generator)
    sampler.batch()
    state = generator.get_state()
    expected = [sampler.batch() for _ in range(3)]
    generator.set_state(state)
    for batch in expected:
        again = sampler.batch()
        assert all(torch.equal(batch[name], again[name]) for name in batch)


# ------------------------------------------------------------------ the loss


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return bert(
        layers=2, hidden=16, heads=2, ffn=32, activation="gelu", dropout=0.1,
        vocabulary_size=SIZE, length=12,
    ).eval()  # fmt: skip


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1_000))
def test_the_losses_are_those_that_transformers_computes(model, seed):
    batch = mask_tokens(_tokens(9, 12), SIZE, _generator(seed))
    with torch.no_grad():
        whole = model(**batch).loss
        rows = [model(**{k: v[i : i + 1] for k, v in batch.items()}).loss for i in range(9)]
        torch.testing.assert_close(masked_losses(model, batch).mean(), whole)
        torch.testing.assert_close(held_out_value(model, batch), torch.stack(rows))


def test_the_gradients_are_those_that_transformers_computes(model):
    batch = mask_tokens(_tokens(9, 12), SIZE, _generator())
    gradients = []
    for loss in (model(**batch).loss, masked_losses(model, batch).mean()):
        model.zero_grad()
        loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    model.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
