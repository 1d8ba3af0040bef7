"""The command line: YAML recipes, overridden by options, checked before anything heavy is imported."""

from __future__ import annotations

import argparse
import dataclasses
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftn_fast import launcher, naming
from sftn_fast.config import Config, ConfigError, check
from sftn_fast.distillers import registry
from sftn_fast.distillers.spec import of_method, of_weights
from sftn_fast.distillers.spec import parse as parse_distill
from sftn_fast.explanation import explain, one_line

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "demo"
PAIR_PREFIX = "cifar100_"

DRY_RUN = ("--dry-run", "--dry_run")
COMMAND_LINE_ONLY = {"method": "distill", "gamma": "distill", "alpha": "distill", "beta": "distill", "dry_run": None}
"""Options that are no keys of a configuration, and the key that a recipe has instead."""

USAGE = "python -m sftn_fast.train [--config RECIPE] [--KEY VALUE ...]"
DESCRIPTION = """
Train student-friendly teachers and distil students from them. Without --config the recipe "demo" is the base; every
option overrides one of its keys. The defaults below are for keys that the recipe leaves out: --print_config shows what
comes of all. --dry-run says what a run would cost. docs/methods.md lists the methods.
"""


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The file of a recipe: one of the package's by its name, or a path to one of the user's own.

    A pair of the paper's networks, as ``vgg13_vgg8``, stands for its recipe on CIFAR-100. Raises :class:`ConfigError`
    if there is neither.
    """
    for known in (name, f"{PAIR_PREFIX}{name}"):
        if known in recipe_names():  # rather than a file by that name, which might lead out of the folder
            return RECIPES / f"{known}.yaml"
    path = Path(name).expanduser()
    if path.is_file():
        return path
    raise ConfigError(f"config must be a YAML file or one of {', '.join(recipe_names())}, got {name!r}")


def parse(argv: Sequence[str]) -> tuple[Config, str]:
    """Turn command-line arguments into a checked :class:`Config` and the name of the recipe it rests on.

    Raises :class:`ConfigError` with one line for whatever is wrong. ``--help`` and ``--print_config`` print and leave
    by ``SystemExit``.
    """
    arguments, recipe = _resolve_recipe(_resolve_distill(argv))
    parser = _parser()
    values = values_of(parser, [*arguments, *_own_folder(parser, arguments, recipe)])
    for key, instead in COMMAND_LINE_ONLY.items():
        if values[key]:
            raise ConfigError(
                f"{key} is for the command line" + (f"; a recipe has {instead} instead" if instead else "")
            )
    if values["compile"]:
        values["engine"] = dataclasses.replace(values["engine"], compile=True)
    config = Config(**{field.name: values[field.name] for field in dataclasses.fields(Config)})
    if not config.plugins:  # which may bring the method, and run only where something is trained
        check_distill(config)
    return config, recipe


def check_distill(config: Config) -> None:
    """Raise :class:`ConfigError` for a method or an option that there is not, or that ``cache_teacher`` can't serve."""
    for distill in (config.distill, *config.methods):
        parse_distill(distill)
    if config.cache_teacher and "distill" in config.stages:
        ranks = launcher.world_size()
        check(ranks == 1, "cache_teacher", True, f"false where torchrun starts {ranks} processes")
        for distill in config.methods or (config.distill,):
            _check_logits_suffice(distill)


def _check_logits_suffice(distill: str) -> None:
    methods = {term.name: registry.find(term.name) for term in parse_distill(distill).methods}
    taught = {name: method for name, method in methods.items() if not method.only_beforehand}
    for name, method in taught.items():
        allowed = f"false with {distill}, since {name} reads more of the teacher than its logits"
        check(not method.needs_features, "cache_teacher", True, allowed)
    check(bool(taught), "cache_teacher", True, f"false with {distill}, which needs no teacher while the student learns")


def split_dry_run(argv: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without ``--dry-run``, and whether it was among them."""
    others = [part for part in argv if part not in DRY_RUN]
    return others, len(others) < len(argv)


def values_of(parser: ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """What ``argv`` gives each of the parser's keys, groups of keys as the dataclasses that they stand for.

    Raises :class:`ConfigError` with one line for whatever is wrong.
    """
    try:
        return vars(parser.instantiate(parser.parse_args(argv)))
    except (ArgumentError, OSError) as error:
        raise ConfigError(explain(str(error), parser)) from None


def load(path: Path) -> Config:
    """Read the configuration that a run left in its folder."""
    return parse(["--config", str(path)])[0]


def dump(config: Config) -> str:
    """The whole configuration as YAML, in the order of its fields."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain dicts, lists and scalars."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _resolve_recipe(argv: Sequence[str]) -> tuple[list[str], str]:
    """Replace a recipe's name behind ``--config`` by its files; without ``--config``, put the default in front."""
    arguments = [part for argument in argv for part in _split_option(argument, "--config")]
    if "--config" not in arguments[:-1]:
        arguments = ["--config", DEFAULT_RECIPE, *arguments]
    position = arguments.index("--config")
    name = arguments[position + 1]
    files = [part for path in _with_bases(recipe_path(name)) for part in ("--config", str(path))]
    return [*files, *arguments[:position], *arguments[position + 2 :]], name


def _own_folder(parser: ArgumentParser, arguments: Sequence[str], recipe: str) -> list[str]:
    """Return the option that names the run's folder, where ``arguments`` have none; see :mod:`sftn_fast.naming`."""
    if any(part in ("-h", "--help", "--output") or part.startswith("--output=") for part in arguments):
        return []
    path = recipe_path(recipe)
    files = [part for each in _with_bases(path) for part in ("--config", str(each))]
    own = _read_recipe(path).get("output")
    base = Path(own if isinstance(own, str) and own.strip() else f"runs/{path.stem}")
    chosen = [part for part in arguments if not part.startswith("--print_config")]
    before, after = (_settings(parser, argv) for argv in (files, chosen))
    return ["--output", str(naming.folder_for(base, before, after))]


def _settings(parser: ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """Return what ``argv`` gives the keys of a configuration, as nested dicts and unchecked beyond their types."""
    try:
        values = parser.parse_args(argv).as_dict()
    except (ArgumentError, OSError) as error:
        raise ConfigError(explain(str(error), parser)) from None
    if values["compile"]:
        values["engine"]["compile"] = True
    return _plain({field.name: values[field.name] for field in dataclasses.fields(Config)})


def _resolve_distill(argv: Sequence[str]) -> list[str]:
    """Replace ``--method`` and RepDistiller's ``-r``, ``-a`` and ``-b`` by the ``--distill`` that they stand for."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--method")
    parser.add_argument("--distill")
    for short, long in (("-r", "--gamma"), ("-a", "--alpha"), ("-b", "--beta")):
        parser.add_argument(short, long, type=float)
    try:
        given, others = parser.parse_known_args(argv)
    except ArgumentError as error:
        raise ConfigError(one_line(str(error))) from None
    weights = (given.gamma, given.alpha, given.beta)
    weighted = any(weight is not None for weight in weights)
    if given.method and (given.distill or weighted):
        raise ConfigError("method already says what distill, -r, -a and -b would; give one of the two")
    if weighted and not given.distill:
        raise ConfigError("-r, -a and -b need --distill with the name of a method")
    distill = given.distill
    if given.method:
        distill = of_method(given.method)
    elif weighted:
        distill = of_weights(given.distill, *weights)
    if distill is None:
        return others
    if any(part == "--methods" or part.startswith("--methods=") for part in others):
        raise ConfigError("methods already says what distill or method would; give one of the two")
    # A recipe's list of methods gives way to the one that was asked for.
    return [*others, "--distill", distill, "--methods", "[]"]


def _split_option(argument: str, option: str) -> list[str]:
    prefix = f"{option}="
    return [option, argument.removeprefix(prefix)] if argument.startswith(prefix) else [argument]


def _with_bases(path: Path) -> list[Path]:
    """A recipe behind the one that its key ``base`` names, and that behind its own."""
    found = [path]
    while base := _base_of(found[0]):
        found.insert(0, recipe_path(base))
        if found[0] in found[1:]:
            raise ConfigError(f"base of {path} leads back to itself")
    return found


def _base_of(path: Path) -> str | None:
    base = _read_recipe(path).get("base")
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"base of {path} must be the name of a recipe, got {base!r}")
    return base


def _read_recipe(path: Path) -> dict[str, Any]:
    """Return the keys and values of a recipe's own file."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} is not a YAML file: {one_line(str(error))}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values, got {type(values).__name__}")
    return values


def _parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser, set_parsing_settings

    # What a key means is said once, beside its field.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="python -m sftn_fast.train",
        usage=USAGE,
        description=DESCRIPTION,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help=f"a YAML file, or one of: {', '.join(recipe_names())}")
    for short, long, what in (
        (None, "--method", "a method as the SFTN paper trains it, instead of --distill: those on features with KD"),
        ("-r", "--gamma", "with --distill METHOD, as in RepDistiller: weight of the cross-entropy, 1 if not given"),
        ("-a", "--alpha", "likewise: weight of KD"),
        ("-b", "--beta", "likewise: weight of the method"),
    ):
        parser.add_argument(*([short] if short else []), long, help=what)  # for --help: see _resolve_distill
    parser.add_argument(
        *DRY_RUN, action="store_true", help="say what the run would train, hold and take, and train nothing"
    )
    parser.add_argument("--compile", action="store_true", help="the same as --engine.compile=true")
    parser.add_argument("--base", type=str | None, help="in a recipe: another recipe, whose keys this one overrides")
    parser.add_class_arguments(Config)
    return parser
