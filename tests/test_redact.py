"""What is printed of URLs, names and texts of others."""

from __future__ import annotations

import logging
import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparsitywatch.errors import CheckpointError, ConfigurationError
from sparsitywatch.redact import printable, redacted, redacted_error, redacted_url

SECRET = "s3cr3tS3CR3Ts3cr3t"


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("https://me:{}@host/run/a.pt", "https://host/run/a.pt"),
        ("https://{}@host/run/a.pt", "https://host/run/a.pt"),
        ("https://me:p@{}@host/run", "https://host/run"),
        ("https://me:p/{}@host/run", "https://host/run"),
        ("https://me:p?{}@host/run", "https://host/run"),
        ("https://host:8080/run?token={}", "https://host:8080/run?..."),
        ("https://host/run?{}", "https://host/run?..."),
        ("https://host/run#access_token={}", "https://host/run#..."),
        ("HTTPS://me:{}@host", "HTTPS://host"),
        ("s3://{}:x@bucket/run/*", "s3://bucket/run/*"),
        ("s3://b/a.pt?X-Amz-Credential=A%2Fb&X-Amz-Signature={}", "s3://b/a.pt?..."),
        ("az://box/a.pt?sv=2023-01-01&se=2030&sig={}", "az://box/a.pt?..."),
        ("simplecache::https://me:{}@host/a?sig=x", "simplecache::https://host/a?..."),
        ("zip://a.pt::https://me:{}@host/b.zip", "zip://a.pt::https://host/b.zip"),
        ("zip://a?x=1::simplecache::ftp://me:{}@host/b", "zip://a?...::simplecache::ftp://host/b"),
        ("memory:///me:{}@host/a.pt?sig=x", "memory:///host/a.pt?..."),
        ("https://hooks.slack.com/services/T0/B0/{}", "https://hooks.slack.com/..."),
        ("https://discord.com/api/webhooks/1/{}", "https://discord.com/..."),
    ],
)
def test_a_url_is_printed_without_its_secrets(url: str, printed: str) -> None:
    assert redacted_url(url.format(SECRET)) == printed
    assert SECRET not in redacted(f"403 for {url.format(SECRET)}: permission denied.")


@pytest.mark.parametrize(
    "url",
    [
        "/data/run one/step=5?/checkpoint-[0-9]*",
        "runs/bert/checkpoint-*",
        "C:\\runs\\a",
        "s3://bucket/run/checkpoint-?00/*",
        "hf://org/model@step1000",
        "hf://gpt2@main",
        "abfss://container@account.dfs.core.windows.net/run/a.pt",
        "http://[::1]:9000/run/a.pt",
        "https://host/run@v1/a.pt",
        "zip://a/b.pt::/data/run.zip",
        "simplecache::s3://bucket/a",
        "memory://run/Größe/层.pt",
    ],
)
def test_an_ordinary_url_is_printed_as_it_is(url: str) -> None:
    assert redacted_url(url) == url


@given(st.text())
@example("a\x1b]0;title\x07\x9b31m\r\n\t\x7f")
@example("\u202egnirts\u2066\u200b\ufeff\ud800\u2028")
def test_no_name_is_printed_with_a_character_that_a_terminal_obeys(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    assert printable(shown) == shown
    if name.isprintable():
        assert shown == name


@pytest.mark.slow
@given(
    st.text() | st.from_regex(r"([a-z0-9]+://|::|[a-z:@/?#=. \x1b\n\[\]]){1,12}", fullmatch=True)
)
def test_what_is_printed_once_may_be_printed_again(text: str) -> None:
    assert redacted_url(text).isprintable()
    assert redacted(text).replace("\n", "").replace("\t", "").isprintable()
    assert redacted_url(redacted_url(text)) == redacted_url(text)
    assert redacted(redacted(text)) == redacted(text)


_WORD = st.text(alphabet="abcXYZ019-._~!$", min_size=1, max_size=8)


@given(
    st.sampled_from(["https", "http", "s3", "ftp", "gcs", "abfs", "webdav", "sftp"]),
    _WORD.map(lambda word: SECRET + word),
    _WORD,
    st.sampled_from(["", "simplecache::", "zip://in/side.pt::", "filecache::blockcache::"]),
)
def test_no_login_and_no_query_survives(protocol: str, secret: str, path: str, link: str) -> None:
    url = f"{link}{protocol}://user:{secret}@host/{path}?sig={secret}&x={secret}"
    assert redacted_url(url) == f"{link}{protocol}://host/{path}?..."
    assert SECRET not in redacted(f"Cannot read {url}, tensor 'a': OSError: {url!r}")


def test_an_error_of_this_library_tells_no_secret_and_moves_no_cursor() -> None:
    error = CheckpointError(f"Cannot read https://me:{SECRET}@host/a: got \x1b[2J.")
    assert str(error) == "Cannot read https://host/a: got \\x1b[2J."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert ConfigurationError("two", 2).args == ("two", 2)


def test_what_is_logged_tells_no_secret_and_moves_no_cursor(caplog) -> None:
    logger = logging.getLogger("sparsitywatch")
    cause = OSError(f"\x1b[31m https://me:{SECRET}@host/a?sig={SECRET}")
    logger.error("sparsitywatch: at %s, 100%%: %s", 5, "\x1b]0;s3://u:p@b/x", exc_info=cause)
    assert "sparsitywatch: at 5, 100%: \\x1b]0;s3://b/x" in caplog.text
    assert "OSError: \\x1b[31m https://host/a?..." in caplog.text
    assert "\x1b" not in caplog.text
    assert SECRET not in caplog.text


def test_marks_of_a_name_are_escaped_and_letters_stay() -> None:
    assert printable("a\x1b[2J\n") == r"a\x1b[2J\n"
    assert printable("layer.0.Gewicht_ß") == "layer.0.Gewicht_ß"


def test_an_error_is_its_kind_and_what_it_says() -> None:
    error = OSError(f"no route\nto ftp://me:{SECRET}@host")
    assert redacted_error(error) == "OSError: no route to ftp://host"


@pytest.mark.parametrize("message", ["at %d", "sparsitywatch: at %d"])
def test_what_is_logged_begins_with_the_name_of_the_library_once(message: str, caplog) -> None:
    logging.getLogger("sparsitywatch").warning(message, 5)
    assert caplog.messages == ["sparsitywatch: at 5"]
