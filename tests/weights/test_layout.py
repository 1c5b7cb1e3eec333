"""What the names of tensors say: without wrappers, and in the order that people give them."""

from __future__ import annotations

from sparsitywatch.weights.layout import clean_name, clean_names, natural_order


def test_wrappers_leave_no_trace_in_names() -> None:
    assert clean_name("_orig_mod.encoder._checkpoint_wrapped_module.weight") == "encoder.weight"


def test_the_prefix_of_data_parallel_goes_where_every_name_has_it() -> None:
    wrapped, inner = "module._orig_mod.weight", "module.module.weight"
    assert clean_names([wrapped, inner]) == {wrapped: "weight", inner: "module.weight"}
    assert clean_names([inner, "weight"]) == {inner: inner, "weight": "weight"}


def test_numbers_inside_names_count_by_their_value() -> None:
    names = ["layer.10.a", "layer.2.b", "layer.2.a"]
    assert sorted(names, key=natural_order) == ["layer.2.a", "layer.2.b", "layer.10.a"]
