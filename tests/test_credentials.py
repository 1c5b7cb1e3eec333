"""Secrets in a text of others are not printed, words are, and no text takes long."""

from __future__ import annotations

import itertools
import json
import re
import string
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsitywatch import redact
from sparsitywatch.redact import redacted

try:
    from re import _constants as ops
    from re import _parser as parser
except ImportError:  # Python 3.10
    import sre_constants as ops
    import sre_parse as parser

S = "pl4ntedS3cr3tpl4ntedS3cr3t"
HEX = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b"
BODY = "MIIEpAIBAAKCAQEA7bq98abcd"
ENCRYPTED = """-----BEGIN RSA PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-128-CBC,12AB

"""
#: A text of each kind, and what of it is the secret. Those of one word are in parts, so that no
#: scanner of a repository takes them for what they look like.
SECRETS = {
    "wandb": (f"WANDB_API_KEY={HEX} python train.py", HEX),
    "env secret": (f"env MY_SECRET={S} x", S),
    "env password": ("DB_PASSWORD=hunter2;", "hunter2"),
    "env key": (f"AZURE_OPENAI_KEY={S}", S),
    "aws secret": ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCY", "wJalrXUtnFEMI"),
    "aws credentials file": ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPx", "wJalrXUtnFEMI"),
    "aws id": ("denied for AKIA" + "IOSFODNN7EXAMPLE", "IOSFODNN7"),
    "aws session id": ("denied for ASIA" + "IOSFODNN7EXAMPLE", "IOSFODNN7"),
    "aws signature": (f"x=1&X-Amz-Signature={S}&X-Amz-Security-Token={S}", S),
    "gcp key": ("bad AIza" + "SyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY", "SyD-9tSr"),
    "gcp access": ("bad ya29." + "a0AfH6SMBx_12345678901234567890", "a0AfH6SM"),
    "gcp service account": ('{"private_key": "abcd efgh"}', "abcd efgh"),
    "azure account": ("AccountName=a;AccountKey=Eby8vdM02xNOcqFlqUwJPLl==;E=x", "Eby8vdM02"),
    "azure bus": ("Endpoint=sb://x/;SharedAccessKeyName=R;SharedAccessKey=abcdE=", "abcdE"),
    "azure sas": ("sv=2020&sig=abc%2Fdef123456789012345%3D&se=1", "def12345"),
    **{f"gh{c}_": (f"bad gh{c}_16C7e42F292c6912E771", "16C7e42F") for c in "oprsu"},
    "github fine": ("bad github_pat_11ABCDEFG0aBcDeFgHiJkL_mnOpQrStUv", "aBcDeFgHiJ"),
    **{
        f"gl{kind}-": (f"bad gl{kind}-xYz12_abc-DEF456ghi789", "xYz12_abc")
        for kind in ("pat", "dt", "rt", "ptt", "cbt", "ft", "soat", "agent", "imt", "oas")
    },
    "gitlab header": (f"curl -H 'PRIVATE-TOKEN: {S}' x", S),
    "slack bot": ("xoxb-" + "123456789012-1234567890123-AbCdEfGhIjKl", "123456789012"),
    "slack app": ("xapp-" + "1-A0123-123456-abcdef0123456789", "A0123"),
    "hugging face": ("bad hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh", "AbCdEfGhIj"),
    "openai": ("bad key sk-" + "abcdEFGH1234567890abcdEFGH123456", "abcdEFGH1234"),
    "openai project": ("provided: sk-proj-" + "AbC_dEf-1234567890123456789.", "AbC_dEf"),
    "anthropic": ("sk-ant-" + "api03-AbCdEf_123456-AAA", "AbCdEf_123456"),
    "npm": ("npm_" + "abcdefghijklmnopqrstuvwxyz0123456789", "abcdefghijkl"),
    "npmrc": ("//registry.npmjs.org/:_authToken=abcd", "abcd"),
    "pypi": ("pypi-" + "AgEIcHlwaS5vcmcCJDU1YzI0", "AgEIcHlw"),
    "jwt": ("jwt eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT", "SflKxwRJ"),
    "stripe": ("sk_live_" + "51H8abcDEFghiJKLmnoPQRst", "51H8abc"),
    "stripe restricted": ("rk_test_" + "51H8abcDEFghiJKLmnoPQRst", "51H8abc"),
    "stripe hook": ("whsec_" + "abcdefghijkl1234567890abcd", "abcdefghijkl"),
    "sendgrid": ("SG." + "ngeVfQFYQlKU0ufo8x5d1A.TwL2iGABf9DHoTf-09kqeF8t", "TwL2iGAB"),
    "vault": ("hvs." + "CAESIJ1234567890abcdefghij", "CAESIJ12"),
    "databricks": ("token dapi" + "0123456789abcdef0123456789abcdef", "0123456789abcdef"),
    "pem": (f"k:\n-----BEGIN RSA PRIVATE KEY-----\n{BODY}\n-----END RSA PRIVATE KEY-----", BODY),
    "pem encrypted": (f"{ENCRYPTED}{BODY}\n{BODY}\n-----END RSA PRIVATE KEY-----", BODY),
    "pem in json": (rf'{{"k": "-----BEGIN PRIVATE KEY-----\n{BODY}\n-----END"}}', BODY),
    "pem cut short": (f"-----BEGIN OPENSSH PRIVATE KEY-----\n{BODY}\n{BODY}", BODY),
    "bearer": (f"sent Bearer {S}", S),
    "bearer letters": ("sent Bearer AbCdEfGhIjKlMnOp", "AbCdEfGh"),
    "basic": ("sent Basic bWU6cHc=", "bWU6cHc"),
    "basic letters": ("sent Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    "authorization": (f"Authorization: {S}", S),
    "authorization token": (f"Authorization: token {S}", S),
    "authorization word": ("Authorization: Basic secretword", "secretword"),
    "digest": (f'Authorization: Digest username="me", response="{HEX}"', HEX),
    "aws 4": (f"Authorization: AWS4-HMAC-SHA256 Credential=x/y, Signature={HEX}", HEX),
    "headers": (f"{{'Authorization': 'Bearer {S}', 'Accept': 'x'}}", S),
    "headers in pairs": ("[('Authorization', 'Basic dXNlcjpwYXNz')]", "dXNlcjpw"),
    "headers in bytes": (f"[(b'authorization', b'Bearer {S}')]", S),
    "cookie": ("Cookie: session=abcd; csrftoken=ef", "abcd"),
    "set cookie": ("Set-Cookie: id=a3fWa; Path=/", "a3fWa"),
    "cookies": ("cookies={'session': 'abcd'}", "abcd"),
    "json": ('{"token": "abc"}', "abc"),
    "json without blanks": ('{"token":"abc","x":1}', "abc"),
    "json words": ('{"password": "correct horse", "n": 1}', "correct horse"),
    "json escape": (r'{"password": "correct\"horse", "n": 1}', "horse"),
    "json in json": (r'"{\"token\": \"abcd\", \"n\": 1}"', "abcd"),
    "repr": ("Client(token='abcd', x=1)", "abcd"),
    "repr of bytes": ("{'api_key': b'abcd'}", "abcd"),
    "docker": ('"auth": "dXNlcjpwYXNzd29yZA=="', "dXNlcjpw"),
    "yaml": ("password: hunter2", "hunter2"),
    "digits": ("password: 123456", "123456"),
    "a mark": ("password: letmein!", "letmein"),
    "toml": ('password = "letmein"', "letmein"),
    "ini": ("password = hunter2", "hunter2"),
    "netrc": ("machine h login me password hunter22", "hunter22"),
    "connection": ("Server=x;User Id=me;Password=abc;", "abc"),
    "connection pwd": ("Server=x;Uid=me;Pwd=hunter22;", "hunter22"),
    "option with a sign": ("run --token=abcd --x", "abcd"),
    "option of two words": (f"run --api-key {S}", S),
    "option password": ("run --password hunter2 x", "hunter2"),
    "login": (f"postgresql://me:{S}@host/db", S),
    "query": (f"https://h/a?x={S}", S),
    "json in a query": (f"%7B%22token%22%3A%22{S}%22%7D", S),
    "oauth": ("client_secret=abc&x", "abc"),
    "another alphabet": ("\u0130\u212a \u540d token=abcd", "abcd"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
def test_a_secret_of_each_kind_is_not_printed(text: str, secret: str) -> None:
    for around in ("{}", "failed: {}.", "a\nb {}\nc", "\t{}", "OSError({})"):
        said = redacted(around.format(text))
        assert secret not in said
        assert redacted(said) == said


@pytest.mark.parametrize(
    "text",
    [
        "Expected token: int, got str",
        "Expected token: NotImplementedError, got UnexpectedEndOfInput",
        "the password: field, then the `password`: text",
        "password must have at least 8 characters; password: required",
        "tokens: 128 per example, time per token: 12.5 ms, cost per token: 1.5e-05",
        "token: float32, got int64; token: id=50257; the token 50257 is out of range",
        "sort key=value pairs by key: value, primary_key=id, cache_key=layer12",
        "sk-learn, scikit-learn and sk-image; hf_hub_download and hf_transfer; ghp_, AKIA, eyJ",
        "Basic training of a Basic TensorDataset; basic block12",
        "Bearer of news, Bearer authentication, a Basic authentication",
        "model.layers.0.self_attn.k_proj.weight, cls_token: torch.Size([1, 1, 768])",
        "token_embd.weight: 4096x32000, mask_token: 0.123456, cls_token=0.1234",
        "'pad_token': '[PAD]', eos_token='</s>', bos_token=\"<|begin_of_text|>\"",
        "token=None, password=null, use_token=true, num_tokens=512, do_sample",
        "Unexpected token: '}' in JSON at position 12; unknown token: layer12",
        "auth: failed, credentials: missing, authorization: required, the cookie: none",
        "sign: up; signature: (a: int) -> str; secretary: Ms. Basic, monkey=banana",
        "--token is required; argument --token: expected one argument; [--password PASSWORD]",
        "expected one of 'token', 'password', 'secret'; if token == 5: token -> id",
        "/home/me/.cache/huggingface/token and token: /home/me/.cache/huggingface/token",
        "PWD=/home/me/run12 and OLDPWD=/home/me",
        f"commit {HEX}, digest {HEX[:16]}, fingerprint: {HEX[:16]}",
        "x-request-id: 9f86d081-884c-7d65, glue-mnli-matched, glob-pattern-matching-things",
        "it begins with -----BEGIN PRIVATE KEY----- and ends, or -----BEGIN CERTIFICATE-----",
        "step 12: loss 3.45e-01, lr=1e-4, tokens/s: 12345, passed: 12 of 13, bypass=1",
        "password: sha256 of it, password: base64-encoded",
        "see https://arxiv.org/abs/2306.03805, section 3; also s3://bucket/a.",
        "two\nlines\twith a tab",
        "Expected `token`: one of num_tokens=512 and pad_token=[PAD], got key=3 (a basic one).",
    ],
)
def test_words_of_ordinary_sentences_survive(text: str) -> None:
    assert redacted(text) == text


_LETTERS = string.ascii_letters + string.digits
_STRONG = st.text(_LETTERS, min_size=24, max_size=60)
_NAMES = [
    "token", "api_key", "apikey", "API_KEY", "X-Api-Key", "access-token", "hf_token", "HF_TOKEN",
    "client_secret", "password", "DB_PASSWORD", "passphrase", "secret", "aws_secret_access_key",
    "AccountKey", "X-Auth-Token", "private_key",
]  # fmt: skip
#: Ways to give a value to a name.
_WAYS = [
    "{}={}", "{}: {}", "{} = {}", "{}: '{}'", "{}='{}'", "'{}': '{}'", '"{}":"{}"', "--{} {}",
    "--{}={}", "['--{}', '{}']", "('{}', b'{}')", "{}=b'{}'", r"\"{}\": \"{}\"", "<{}>{}<",
    "{}%3D{}", "?{}={}&x=1", "{} => '{}'", "({}={}, x=1)", "{}\t=\t'{}'",
]  # fmt: skip
_WORD = st.text(string.ascii_lowercase, min_size=1, max_size=12)


@settings(max_examples=20)
@given(_STRONG, st.lists(_WORD, max_size=3), st.lists(_WORD, max_size=3))
@example("0" * 24, [], [])
@example("A" * 24, [], [])
@example("a" * 24, [], [])
def test_no_way_to_give_a_long_value_to_a_name_prints_it(
    value: str, before: list[str], behind: list[str]
) -> None:
    around = [" ".join(words) for words in (before, behind)]
    for name, way in itertools.product(_NAMES, _WAYS):
        if way == "--{} {}" and value.isalpha():
            continue  # it may be a word, as in "--token is required"
        text = " ".join([around[0], way.format(name, value), around[1]]).strip(" ")
        said = redacted(text)
        assert value not in said
        assert redacted(said) == said
        for words in around:  # and nothing else is lost
            assert words in said
        assert name in said


@given(
    st.sampled_from(
        ["gho_", "ghp_", "ghs_", "ghu_", "hf_", "sk-", "sk-proj-", "glpat-", "npm_", "xoxb-",
         "AKIA", "AIza"]
    ),
    st.text(_LETTERS, min_size=20, max_size=60),
    st.sampled_from(["{}", "bad {}.", "'{}'", "({}), so", "x={}&y", "a:{}@b", "\n{}\n"]),
)  # fmt: skip
def test_no_value_with_a_known_beginning_is_printed(begin: str, rest: str, around: str) -> None:
    said = redacted(around.format(begin + rest))
    assert rest not in said
    assert redacted(said) == said


@given(
    st.dictionaries(
        st.sampled_from(_NAMES), st.text(min_size=6).filter(lambda x: "..." not in x), min_size=1
    )
)
def test_no_json_of_secrets_prints_one(given: dict[str, str]) -> None:
    for text in (json.dumps(given), json.dumps(given, separators=(",", ":"))):
        said = redacted(text)
        for value in given.values():
            shown = json.dumps(value)[1:-1]
            if not value.lower().strip().isdigit():
                assert f'"{shown}"' not in said, (text, said)
    text = quote("&".join(f"{name}={value}" for name, value in given.items()))
    assert redacted(redacted(text)) == redacted(text)


@given(
    st.lists(
        _WORD | _WORD.map(str.capitalize) | st.integers(0, 10**6).map(str)
        | st.sampled_from(["token", "tokens", "key", "password", "secret", "basic", "Bearer",
        "auth",
                           "cookie", "sig", "layers.0.weight", "int64", "3.5e-4", "sk-learn"]),
        max_size=12,
    ),
    st.lists(st.sampled_from([" ", ", ", ". ", ": ", "; ", " (", ") "]), min_size=12, max_size=12),
)  # fmt: skip
def test_sentences_of_short_words_and_numbers_survive(words: list[str], marks: list[str]) -> None:
    text = "".join(word + mark for word, mark in zip(words, marks, strict=False))
    if re.search(r"(?i)(pass|secret)\S*\W+\d{6}", text):
        return  # six digits may be a password
    assert redacted(text) == text


_PIECES = [
    "token", "Token", "password", "pwd", "secret", "api_key", "key", "auth", "Authorization",
    "Cookie", "Bearer ", "Basic ", "Digest ", "sig", "=", ":", ": ", ":=", " ", "'", '"', "\\",
    '\\"', ",", ";", "&", ")", "}", "{", "[", "-", "--", "_", ".", "/", "//", "://", "@", "?", "#",
    "::", "http", "s3", "hf", "a", "b1", "hunter22", "abcd1234efgh", "A" * 16, "0" * 16, "\n",
    "\t", "...", "%3d", "%22", "%3a", "None", "5", "sk-", "ghp_", "hf_", "eyJ", "AKIA", "glpat-",
    "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "x", "hooks.", "~", "!", "$",
    "\x1b", "\xe9", "\u0130", "<", ">", "|", "`",
]  # fmt: skip


@given(st.lists(st.sampled_from(_PIECES), max_size=14).map("".join))
@example("token=None,password_KEYb1hooks.")
@example('{::TOKEN: "secret=hfx%3d-"')
@example("glpat-abcd1234efghs3hf_://`%22@pwd")
@example("secret'\t%3a%22s3")
@example("https://hooks.b1/a-----")
def test_what_was_redacted_stays_as_it_is(text: str) -> None:
    assert redacted(redacted(text)) == redacted(text)


# ------------------------------------------------------------------ how long it takes


def unbounded(items: object, *, is_last: bool = True) -> Iterator[str]:
    """Repeats without a limit behind which something may fail: those look at a text again.

    Blanks are excepted: no name begins with one.
    """
    rows = list(items)
    for index, (op, about) in enumerate(rows):
        behind = rows[index + 1 :]
        cannot_fail = is_last and all(
            parser_width(row) == 0 and row[0] in _REPEATS for row in behind
        )
        if op in _REPEATS:
            _, most, repeated = about
            is_blank = {row[0] for row in flat(repeated)} <= {ops.LITERAL} and {
                row[1] for row in flat(repeated)
            } <= {32, 9}
            if most == ops.MAXREPEAT and not cannot_fail and not is_blank:
                yield str(repeated)
            yield from unbounded(repeated, is_last=cannot_fail)
        elif op == ops.SUBPATTERN:
            yield from unbounded(about[3], is_last=cannot_fail)
        elif op == ops.BRANCH:
            for branch in about[1]:
                yield from unbounded(branch, is_last=cannot_fail)
        elif op in (ops.ASSERT, ops.ASSERT_NOT):
            yield from unbounded(about[1], is_last=False)


_REPEATS = (ops.MAX_REPEAT, ops.MIN_REPEAT)


def parser_width(row: tuple) -> int:
    return row[1][0] if row[0] in _REPEATS else 1


def flat(repeated: object) -> list[tuple]:
    """The members of a repeated set, or the repeated itself."""
    return [one for op, about in repeated for one in (about if op == ops.IN else [(op, about)])]


PATTERNS = [
    *redact._LINES,
    *(one[1] for one in (*redact._BY_NAME, *redact._BY_FORM)),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda one: one.pattern[:12])
def test_each_pattern_begins_with_letters_and_looks_no_further_than_its_limits(pattern) -> None:
    letters = re.match(r"\(?[\w -]{2,}", pattern.pattern)
    assert letters, "it is looked for at every character"
    tree = parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE)
    assert list(unbounded(tree)) == []


@pytest.mark.parametrize(
    ("pattern", "is_bounded"),
    [
        ("ab[^x]*", True),
        ("ab[ \t]*=", True),
        ("ab(?:c*d)?", False),
        (r"ab\w*=", False),
        (r"ab(?=\w*=)", False),
        (r"ab(?=\w{0,9}=)x+", True),
        ("ab(?:[^x]*(?:y[^x]*)*)", True),
    ],
)
def test_the_check_of_limits_finds_what_has_none(pattern: str, *, is_bounded: bool) -> None:
    assert (not list(unbounded(parser.parse(pattern)))) == is_bounded


@pytest.mark.part(4)
@pytest.mark.parametrize(
    "piece",
    ["a", "0", "\n", " ", "'", '"', "\\", ":", "=", "@", "/", "-", "a.", "X-Amz-", "://", "a:b@c/",
     "/a:b@", "::a", "token", "token:", "token: ", "token=", "token='", "cookie:", "key", "sk-",
     "eyJ",
     "authorization: digest", "-----BEGIN PRIVATE KEY-----", "PRIVATE KEY ", "\x1b", "a\x1b",
     "\xe9\x1b"],
)  # fmt: skip
@pytest.mark.parametrize("begin", ["", "http://x@", "-----BEGIN ", "token: ", "cookie: "])
def test_a_long_text_of_whatever_ends(begin: str, piece: str) -> None:
    """Where time grew with the square, one of these would take minutes."""
    said = redacted(begin + piece * (200_000 // len(piece)))
    assert len(said) <= 5 * 200_000
