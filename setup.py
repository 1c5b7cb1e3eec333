"""What pyproject.toml cannot say: README as an index shows it, without the files beside it."""

import re
from pathlib import Path

from setuptools import setup

#: A picture or link to a file of the repository. The picture goes, a link leaves its words.
BESIDE = re.compile(r"(!?)\[([^\]]*)\]\((?!https:|#)[^)]*\)")

readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
setup(
    long_description=BESIDE.sub(lambda link: "" if link[1] else link[2], readme),
    long_description_content_type="text/markdown",
)
