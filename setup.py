"""What pyproject.toml cannot say: a built wheel takes the course's data along, which lies beside the package here."""

from pathlib import Path
from shutil import copy, copytree, ignore_patterns

from setuptools import setup
from setuptools.command.build_py import build_py

TAKEN = ("glossary.json", "prompts", "pictures", "models/tiny-glm4v")


class BuildWithData(build_py):
    """Also copies data/ into the package, where an installed course looks for it (helpers.models.store.DATA)."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name in TAKEN:
                source, target = Path("data", name), Path(self.build_lib, "helpers", "data", name)
                target.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    copytree(source, target, dirs_exist_ok=True, ignore=ignore_patterns(".*"))
                else:
                    copy(source, target)


setup(cmdclass={"build_py": BuildWithData})
