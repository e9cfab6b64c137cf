"""Prints the requirements of Millrace with some extras, one a line: python requirements.py pyproject.toml EXTRA ...

An image's layer of dependencies is made from this, so that a change of the code alone does not make it anew.
"""

import sys
import tomllib
from pathlib import Path


def main(pyproject: str, *extras: str) -> None:
    project = tomllib.loads(Path(pyproject).read_text(encoding="utf-8"))["project"]
    for requirement in (project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)):
        print("\n".join(requirement))


if __name__ == "__main__":
    main(*sys.argv[1:])
