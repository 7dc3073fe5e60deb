"""Put the recipes of launch/ into the wheel, as asyncdni/recipes/; pyproject.toml has the rest."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copies the recipes beside the modules, except for an editable install, which has launch/."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib) / "asyncdni" / "recipes"
            self.mkpath(str(folder))
            for recipe in sorted((Path(__file__).parent / "launch").glob("*.toml")):
                self.copy_file(str(recipe), str(folder / recipe.name))


setup(cmdclass={"build_py": BuildWithRecipes})
