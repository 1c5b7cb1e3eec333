"""Pickles as descriptions: plain data is what pickle makes of it, everything else a node."""

from __future__ import annotations

import collections
import pathlib
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsitywatch.checkpoints.inert_pickle import Call, Global, in_words, read_inert, whole_of

NUMBERS = st.integers(-(2**64) + 1, 2**64 - 1)  # longer ones are no keys
HASHABLE = st.one_of(
    st.none(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), st.booleans()
)
PLAIN = st.recursive(
    st.one_of(HASHABLE, st.sets(st.text()), st.frozensets(NUMBERS)),
    lambda inner: st.one_of(
        st.lists(inner), st.tuples(inner, inner), st.dictionaries(st.text(), inner),
        st.dictionaries(NUMBERS, inner), st.tuples(inner, inner, inner, inner),
    ),
    max_leaves=20,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=120)
@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_is_what_pickle_makes_of_it(value: object, protocol: int) -> None:
    # sets and bytes are calls in old protocols
    is_old = protocol < 4
    data = pickle.dumps(value, protocol)
    read = read_inert(data)
    if not (is_old and (b"set" in data or b"codecs" in data or b"bytes" in data)):
        assert read == pickle.loads(data)


def test_shared_and_endless_things() -> None:
    inner = [1]
    endless: list[object] = [inner, inner]
    endless.append(endless)
    read = read_inert(pickle.dumps(endless))
    assert read[0] is read[1]
    assert read[2] is read


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_objects_are_nodes(protocol: int) -> None:
    data = pickle.dumps(
        {"path": pathlib.PurePosixPath("a/b"), "dict": collections.OrderedDict(x=1)}, protocol
    )
    read = read_inert(data)
    assert isinstance(read["path"], Call)
    assert read["dict"] == {"x": 1}


def test_a_name_that_is_not_there_does_not_matter() -> None:
    read = read_inert(b"cno.such.module\nname\n.")
    assert read == Global("no.such.module", "name")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no opcode|pickle"),
        (b"}", "without|exhausted|pickle"),
        (b".", "contradicts itself"),
        (b"(.", "contradicts itself"),
        (b"}]K\x01s.", r"contradicts itself \(TypeError\)"),
        (b"}(K\x01K\x02K\x01K\x03u.", "the key '1' twice"),
        (b"\x82\x01.", "the pickle opcode EXT1"),
        (b"h\x05.", "contradicts itself"),
        (b"K\x01K\x02a.", "contradicts itself"),
    ],
)
def test_what_contradicts_itself(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_inert(data)


def test_a_place_far_out_in_the_memo_takes_no_memory() -> None:
    # pickle.loads allocates a table of as many places: gigabytes for ten bytes
    assert read_inert(b"K\x01r\xff\xff\xff\x7f.") == 1


def test_odd_escapes_in_a_pickle_warn_nobody() -> None:
    """Found by fuzzing: pickletools decodes such a string with a DeprecationWarning."""
    assert read_inert(rb"S'\q'" + b"\n.") == "\\q"


def test_a_call_is_named_and_never_made() -> None:
    call = read_inert(b"cposix\nsystem\n(S'rm -rf /'\ntR.")
    assert (in_words(call.function), call.arguments) == ("posix.system", ("rm -rf /",))


def test_any_node_is_said_in_a_few_words() -> None:
    assert in_words((1, 2)) == "a tuple"
    assert in_words(10**5000) == "a large number"
    assert in_words(Call(Global("a", "b"), ())) == "an object of a.b"


def test_whole_numbers_are_told_from_all_else() -> None:
    assert [whole_of(node) for node in (500, 500.0, "500")] == [500] * 3
    assert [whole_of(node) for node in (0.5, True, -1, 10**5000)] == [None] * 4
