"""`tool import` takes what `git am` takes, and refuses what it would take by mistake."""

from __future__ import annotations

import base64
import quopri
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.lab import TREE, UTILS, Lab, git
from tool.authoring.mail import read_mail
from tool.errors import UsageError
from tool.project.workspace import Workspace

STOCK = TREE["sglang/srt/utils.py"]
HEADER = ("--change", "demo", "--drop-when", "never")
FOOTER = (
    b"_______________________________________________\nlist mailing list\nhttps://lists.invalid\n"
)
HUNK = "@@ -1,2 +1,3 @@\n one\n+two\n three\n"


@pytest.fixture
def fork(lab: Lab, tmp_path: Path) -> Path:
    return lab.fork(
        tmp_path / "fork",
        {"demo/answer.patch": {UTILS: STOCK.replace("return 3\n", "return 33\n")}},
    )


def make_mail(fork: Path, edits: dict[str, bytes | None], *args: str) -> bytes:
    """What `git format-patch` makes of ``edits``, committed and then taken back."""
    for path, content in edits.items():
        (fork / path).parent.mkdir(parents=True, exist_ok=True)
        (fork / path).write_bytes(content) if content is not None else (fork / path).unlink()
    git(fork, "add", "-A", "-f")
    git(fork, "commit", "-qm", "Answer nine\n\nNine is asked often: 9=9 é.")
    words = ["git", "format-patch", "-1", "--stdout", *args]
    # Bytes: as text, the CRs of a file would be lost here.
    mail = subprocess.run(words, cwd=fork, capture_output=True, check=True).stdout
    git(fork, "reset", "-q", "--hard", "HEAD~1")
    return mail


def answer_nine(fork: Path, *args: str) -> bytes:
    text = (fork / UTILS).read_text().replace("return 9\n", "return 9 == 9\n")
    return make_mail(fork, {UTILS: text.encode()}, *args)


def do_import(lab: Lab, content: bytes, *args: str, code: int = 0) -> dict[str, Any]:
    path = lab.root.parent / "incoming"
    path.write_bytes(content)
    envelope = lab.json("import", str(path), "their", *HEADER, *args, "--offline", code=code)
    result: dict[str, Any] = envelope["result"] or envelope["error"]
    return result


def written(lab: Lab) -> str:
    return (lab.root / "patches/demo/their.patch").read_text()


def recode(mail: bytes, encoding: str, body: bytes) -> bytes:
    head = mail.partition(b"\n\n")[0]
    lines = [line for line in head.split(b"\n") if b"Content-" not in line and b"MIME" not in line]
    lines += [
        b"MIME-Version: 1.0",
        b"Content-Type: text/plain; charset=UTF-8",
        f"Content-Transfer-Encoding: {encoding}".encode(),
    ]
    return b"\n".join(lines) + b"\n\n" + body


def body_of(mail: bytes) -> bytes:
    return mail.partition(b"\n\n")[2]


FORMS: dict[str, Callable[[Path], bytes]] = {
    "as git makes it": lambda f: answer_nine(f),
    "quoted-printable": lambda f: recode(
        m := answer_nine(f), "quoted-printable", quopri.encodestring(body_of(m))
    ),
    "base64": lambda f: recode(m := answer_nine(f), "base64", base64.encodebytes(body_of(m))),
    "base64 with CRLF": lambda f: recode(
        m := answer_nine(f), "base64", base64.encodebytes(body_of(m).replace(b"\n", b"\r\n"))
    ),
    "CRLF": lambda f: answer_nine(f).replace(b"\n", b"\r\n"),
    "a list's footer": lambda f: answer_nine(f) + FOOTER,
    "without prefixes": lambda f: answer_nine(f, "--no-prefix"),
    "other prefixes": lambda f: answer_nine(f, "--src-prefix=i/", "--dst-prefix=w/"),
    "attached": lambda f: answer_nine(f, "--attach"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_mail(lab: Lab, fork: Path, form: str) -> None:
    done = do_import(lab, FORMS[form](fork))
    assert done["files"] == {UTILS: "changed"}
    text = written(lab)
    assert text.startswith("Description: Answer nine\n Nine is asked often: 9=9 é.\n")
    assert "\nAuthor: Ada <ada@example.invalid>\n" in text
    assert "+    return 9 == 9\n" in text and "mailing list" not in text
    assert lab.json("lint")["result"]["findings"] == []


def test_a_tag_stays_and_the_series_of_mails_does_not(lab: Lab, fork: Path) -> None:
    mail = answer_nine(fork).replace(b"[PATCH]", b"[PATCH v2 3/4] [Bugfix]")
    do_import(lab, mail)
    assert written(lab).startswith("Description: [Bugfix] Answer nine\n")


def test_a_file_that_was_renamed(lab: Lab, fork: Path) -> None:
    text = (fork / UTILS).read_bytes()
    moved = "python/sglang/srt/x y.py"
    done = do_import(
        lab, make_mail(fork, {UTILS: None, moved: text.replace(b"return 9", b"return 99")})
    )
    assert done["files"] == {UTILS: "removed", moved: "added"}


def test_every_kind_of_name_and_content(lab: Lab, fork: Path) -> None:
    root = "python/sglang/srt"
    edits: dict[str, bytes | None] = {
        f"{root}/config/N=1,K=2,name=x y.json": b'{"a": 1}\n',
        f"{root}/new file.py": b"A = 1\n",
        f"{root}/ünïcode.py": b"B = 1\n",
        f'{root}/quo"te.py': b"C = 1\n",
        f"{root}/package/__init__.py": b"",
        f"{root}/bom.py": "\ufeffD = 1\n".encode(),
        f"{root}/tail.py": b"E = 1",
        f"{root}/crlf.py": b"F = 1\r\nG = 2\r\n",
        "python/sglang/srt/__init__.py": None,
    }
    done = do_import(lab, make_mail(fork, edits))
    assert set(done["files"]) == set(edits)
    assert lab.json("lint")["result"]["findings"] == []
    assert lab.json("check", "--offline")["result"]["findings"] == 0
    git(fork, "checkout", "-q", ".")
    lab.apply(fork)
    for path, content in edits.items():
        found = (fork / path).read_bytes() if (fork / path).exists() else None
        assert found == content, path
    assert lab.json("export", str(fork))["result"]["written"] == []


QUOTED = f"diff --git a/{UTILS} b/{UTILS}\n--- a/{UTILS}\n+++ b/{UTILS}\n{HUNK}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.replace(b"often", QUOTED.encode() + b"often"), "diff"),
        (
            lambda m: m.replace(
                b"Nine", b"\n> " + QUOTED.replace("\n", "\n> ").encode() + b"\nNine"
            ),
            "diff",
        ),
        (lambda m: m.replace(b"often", b"often\n    --- a/x\n    +++ b/x\n"), "diff"),
        (lambda m: m.replace(b"\n---\n", b"\n---\n@@ -1 +1 @@\n", 1), "diff"),
        (lambda m: m + QUOTED.encode().partition(b"\n")[2], "outside the hunks"),
        (
            lambda m: m.replace(f"+++ b/{UTILS}".encode(), b"+++ b/python/sglang/version.py"),
            "does not name",
        ),
        (
            lambda m: m.replace(f"--- a/{UTILS}".encode(), b"--- a/python/sglang/version.py"),
            "does not name",
        ),
        (
            lambda m: m.replace(f" b/{UTILS}\n".encode(), b" b/python/sglang/version.py\n", 1),
            "names",
        ),
        (lambda m: m.replace(b"\nindex ", b"\nold mode 100644\nnew mode 100755\nindex "), "mode"),
        (lambda m: m.replace(b"100644", b"120000"), "symlink"),
        (lambda m: m.replace(b"100644", b"160000"), "submodule"),
        (
            lambda m: m.replace(b"python/sglang/srt/", b"python/other/srt/"),
            "outside python/sglang/",
        ),
        (lambda m: m.replace(b"return 9 ", b"return\0 "), "binary"),
        (lambda m: m.split(b"\n--- a/")[0] + b"\nBinary files differ\n", "binary"),
        (lambda m: m.replace(b"diff --git", b"dift --git"), "holds no git diff"),
        (lambda m: m + m, "several mails"),
    ],
)
def test_refused_with_the_true_reason(
    lab: Lab, fork: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    mail = answer_nine(fork)
    before = (lab.root / "series.txt").read_bytes()
    assert change(mail) != mail
    error = do_import(lab, change(mail), code=2)
    assert words in error["message"], error
    assert (lab.root / "series.txt").read_bytes() == before


@pytest.mark.parametrize(
    "body", [b"\n" * 48_000, b"-- \n" * 12_000, b"\n-- \n\n" * 8_000, b" " * 48_000]
)
def test_long_runs_of_blank_lines(tmp_path: Path, body: bytes) -> None:
    """The reader looks at each line once; a search that begins anew at each took 13 s for these."""
    repository = Workspace(tmp_path, tmp_path / "data").open_repository()
    mail = b"From: a <a@b>\nSubject: s\n\nwhy\n" + body + b"\n---\n" + QUOTED.encode() + body
    assert [f.path for f in read_mail(repository, "x", mail).files] == [UTILS]


def test_what_is_not_a_file(lab: Lab, fork: Path) -> None:
    path = lab.root.parent / "incoming"
    path.symlink_to("/dev/zero")
    error = lab.json("import", str(path), "their", *HEADER, code=2)["error"]
    assert "not a regular file" in error["message"]


def test_a_hunk_of_many_digits(tmp_path: Path) -> None:
    repository = Workspace(tmp_path, tmp_path / "data").open_repository()
    diff = QUOTED.replace("-1,2", "-" + "1" * 5000 + ",2").encode()
    with pytest.raises(UsageError, match="no hunks"):
        read_mail(repository, "x", diff)
