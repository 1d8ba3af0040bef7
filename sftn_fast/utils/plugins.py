"""Plugins: Python files or modules with the user's own networks and methods, imported before names are looked up."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from sftn_fast.config import ConfigError
from sftn_fast.utils import user_code
from sftn_fast.utils.text import one_line


def load(plugins: Iterable[str]) -> None:
    """Import each of ``plugins``, a file ``PATH.py`` or the name of a module, once per process.

    Plugins register networks and methods by :func:`sftn_fast.models.register` and
    :func:`sftn_fast.distillers.register`.

    Raises:
        ConfigError: A plugin does not exist, or raised an exception while it ran.
    """
    for plugin in plugins:
        try:
            _load_file(Path(plugin).expanduser()) if plugin.endswith(".py") else _load_module(plugin)
        # A plugin may raise anything. The message names the plugin.
        except (Exception, SystemExit) as error:
            reason = one_line(f"{type(error).__name__}: {error}{user_code.place_of_error(error)}")
            raise ConfigError(f"plugins: {plugin} can't be imported: {reason}") from error


def _load_module(name: str) -> None:
    module = importlib.import_module(name)
    if file := getattr(module, "__file__", None):
        path = Path(file)
        user_code.plugins.add(path.parent if path.name == "__init__.py" else path)


def _load_file(path: Path) -> None:
    path = path.resolve()
    user_code.plugins.add(path)
    if any(getattr(module, "__file__", None) == str(path) for module in list(sys.modules.values())):
        return
    if not path.is_file():
        raise FileNotFoundError(f"there is no such file: {path}")
    # The stem alone may be the name of another module.
    name = f"sftn_fast_plugin_{path.stem}_{len(sys.modules)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as import does; dataclasses and pickle need it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
