"""The command line: YAML recipes, overridden by options, checked before anything heavy is imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sftn_fast.cli import output_folder
from sftn_fast.cli.keys import build
from sftn_fast.cli.messages import refuse_name, refuse_network
from sftn_fast.cli.network_names import NETWORKS, describe, twin_of
from sftn_fast.cli.options import CommandLine, Option
from sftn_fast.cli.recipe import BASE, Reader
from sftn_fast.config import Config, ConfigError, TransferConfig, check
from sftn_fast.distillers import registry
from sftn_fast.distillers.spec import of_method, of_weights
from sftn_fast.distillers.spec import parse as parse_distill
from sftn_fast.utils import launcher, safe_yaml

RECIPES = Path(__file__).parents[1] / "recipes"
DEFAULT_RECIPE = "demo"
PAIR_PREFIX = "cifar100_"

DRY_RUN = ("--dry-run", "--dry_run")
COMMAND_LINE_ONLY = {
    "method": "distill",
    "gamma": "distill",
    "alpha": "distill",
    "beta": "distill",
    "dry_run": None,
    "config": BASE,
    "print_config": None,
}
"""Options that are no keys of a configuration, and the key that a recipe has instead."""
ALIASES = {"compile": "engine.compile"}

USAGE = "python -m sftn_fast.train [--config RECIPE] [--KEY VALUE ...]"
DESCRIPTION = """
Train student-friendly teachers and distil students from them. Without --config the recipe "demo" is the base; every
option overrides one of its keys. The defaults below are for keys that the recipe leaves out: --print_config shows what
comes of all. --dry-run says what a run would cost. docs/methods.md lists the methods.
"""
COMMON = ("config", "teacher", "student", "method", "epochs", "seeds", "data.name", "data.root", "output", "dry_run")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(name: str, *, key: str = "config") -> Path:
    """The file of a recipe: one of the package's by its name, or a path to one of the user's own.

    A pair of the paper's networks, as ``vgg13_vgg8``, stands for its recipe on CIFAR-100. Raises :class:`ConfigError`
    that blames ``key`` if there is neither.
    """
    for known in (name, f"{PAIR_PREFIX}{name}"):
        if known in recipe_names():  # rather than a file by that name, which might lead out of the folder
            return RECIPES / f"{known}.yaml"
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return path
    except (OSError, RuntimeError, ValueError):  # too long, nobody's home, a NUL
        pass
    raise ConfigError(refuse_name(key, name, recipe_names(), kind="a YAML file that is there, or one of"))


def parse(argv: Sequence[str]) -> tuple[Config, str]:
    """Turn command-line arguments into a checked :class:`Config` and the name of the recipe it rests on.

    Raises :class:`ConfigError` with one line for whatever is wrong. ``--help`` and ``--print_config`` print and leave
    by ``SystemExit``.
    """
    line = _command_line()
    given = line.parse(argv)
    recipes = given.get("config", [DEFAULT_RECIPE])
    reader = Reader(line.keys, ALIASES, COMMAND_LINE_ONLY)
    files = [each for recipe in recipes for each in _with_bases(recipe, reader)]
    of_recipes = {key: value for _, values in files for key, value in values.items()}
    values = line.merge(of_recipes, given | _resolve_distill(given))
    if given.get("compile"):
        values["engine.compile"] = True
    if "output" not in given:
        values["output"] = _own_folder(recipes[-1], files[-1][1], *(_settings(each) for each in (of_recipes, values)))
    try:
        config = build(Config, values)
        check_names(config)
    except ConfigError as error:
        raise ConfigError(f"{_origin(str(error), given, files)}{error}") from error
    if given.get("print_config"):
        print(dump(config), end="")
        raise SystemExit(0)
    return config, " and ".join(recipes)


def check_names(config: Config) -> None:
    """Raise :class:`ConfigError` for a network or method that there is not; needs no import of torch.

    What ``plugins`` may bring is known only after they have run, which they do only where something is trained.
    """
    if not config.plugins:
        check_networks(config, NETWORKS)
        check_distill(config)


def check_networks(config: Config, known: Collection[str]) -> None:
    """Raise :class:`ConfigError` for a network that is none of ``known``."""
    for key, name in networks_in(config):
        if name not in known:
            raise ConfigError(refuse_network(key, name, known))


def networks_in(config: Config) -> list[tuple[str, str]]:
    """Return the networks that ``config`` names, each behind its key."""
    several = [("collaborate.networks", name) for name in config.collaborate.networks]
    return [("teacher", config.teacher), ("student", config.student), *several]


def describe_twins(config: Config) -> list[str]:
    """Return a line for each network that another one's name could be taken for."""
    twins = {name: twin for _, name in networks_in(config) if (twin := twin_of(name)) is not None}
    return [f"{describe(name)} is another network than {describe(twin)}" for name, twin in twins.items()]


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
    taught = {name: method for name, method in methods.items() if not method.only_initialises}
    for name, method in taught.items():
        allowed = f"false with {distill}, since {name} reads more of the teacher than its logits"
        check(not method.needs_features, "cache_teacher", True, allowed)
    check(bool(taught), "cache_teacher", True, f"false with {distill}, which needs no teacher while the student learns")


def split_dry_run(argv: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without ``--dry-run``, and whether it was among them."""
    others = [part for part in argv if part not in DRY_RUN]
    return others, len(others) < len(argv)


def load(path: Path) -> Config:
    """Read the configuration that a run left in its folder."""
    return parse(["--config", str(path)])[0]


def dump(config: Config) -> str:
    """The whole configuration as YAML, in the order of its fields."""
    return safe_yaml.dump(to_dict(config))


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain dicts, lists and scalars."""
    return safe_yaml.plain(dataclasses.asdict(config))


def parse_transfer(argv: Sequence[str], description: str) -> TransferConfig:
    """Turn the command line of :mod:`sftn_fast.transfer` into a checked :class:`TransferConfig`.

    Raises :class:`ConfigError` with one line for whatever is wrong.
    """
    line = CommandLine(
        TransferConfig,
        usage="python -m sftn_fast.transfer NETWORK [--KEY VALUE ...]",
        description=description,
        common=("data.name", "data.root", "epochs", "lr", "output"),
        positional="network",
    )
    return build(TransferConfig, line.merge({}, line.parse(argv)))


def _with_bases(recipe: str, reader: Reader) -> list[tuple[Path, dict[str, Any]]]:
    """Return a recipe's file and values, behind those of the recipe that its key ``base`` names."""
    path = recipe_path(recipe)
    found = [(path, reader.read(path))]
    while (base := found[0][1].get(BASE)) is not None:
        try:
            path = recipe_path(base, key=BASE)
        except ConfigError as error:
            raise ConfigError(f"{found[0][0]}: {error}") from None
        if any(path == other for other, _ in found):
            raise ConfigError(f"base of {found[0][0]} leads back to itself")
        found.insert(0, (path, reader.read(path)))
    return found


def _own_folder(recipe: str, own: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the run's folder where the command line has none; see :mod:`sftn_fast.cli.output_folder`.

    Args:
        recipe: Name of the last recipe.
        own: Its own values, without those of its base.
        before: All settings by the recipes.
        after: Those of the run.
    """
    given = str(own.get("output", ""))
    base = Path(given if given.strip() else f"runs/{recipe_path(recipe).stem}")
    return str(output_folder.folder_for(base, before, after))


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """Return the value of every key, in the order of the configuration."""
    return {name: values.get(name, key.default) for name, key in _command_line().keys.items()}


def _resolve_distill(given: dict[str, Any]) -> dict[str, Any]:
    """Return the ``distill`` that ``--method`` or RepDistiller's ``-r``, ``-a`` and ``-b`` stand for."""
    weights = [_weight(given, option, key) for option, key in (("-r", "gamma"), ("-a", "alpha"), ("-b", "beta"))]
    weighted = any(weight is not None for weight in weights)
    method, distill = given.get("method"), given.get("distill")
    if method and (distill or weighted):
        raise ConfigError("method already says what distill, -r, -a and -b would; give one of the two")
    if weighted and not distill:
        raise ConfigError("-r, -a and -b need --distill with the name of a method")
    if method:
        distill = of_method(method)
    elif weighted:
        distill = of_weights(str(distill), *weights)
    if distill is None:
        return {}
    if "methods" in given:
        raise ConfigError("methods already says what distill or method would; give one of the two")
    # A recipe's list of methods gives way to the one that was asked for.
    return {"distill": distill, "methods": ()}


def _weight(given: dict[str, Any], option: str, key: str) -> float | None:
    try:
        return float(given[key]) if key in given else None
    except ValueError:
        raise ConfigError(f"option {option}: invalid float value: {given[key]!r}") from None


def _origin(message: str, given: Collection[str], files: list[tuple[Path, dict[str, Any]]]) -> str:
    """Return the file that gave the key which ``message`` begins with; nothing if the command line did, or nobody."""
    key = message.partition(" ")[0].rstrip(":")
    of_files = [path for path, values in files if key in values]
    return f"{of_files[-1]}: " if of_files and key not in given else ""


@cache
def _command_line() -> CommandLine:
    options = [
        Option(("--config",), f"a YAML file, or one of: {', '.join(recipe_names())}", many=True),
        Option(("--method",), "a method as the SFTN paper trains it, instead of --distill: those on features with KD"),
        Option(("-r", "--gamma"), "with --distill METHOD, as in RepDistiller: weight of the cross-entropy, else 1"),
        Option(("-a", "--alpha"), "likewise: weight of KD"),
        Option(("-b", "--beta"), "likewise: weight of the method"),
        Option(DRY_RUN, "say what the run would train, hold and take, and train nothing", flag=True),
        Option(("--compile",), "the same as --engine.compile true", flag=True),
        Option(("--print_config",), "print the whole configuration as a recipe and leave", flag=True),
    ]
    return CommandLine(Config, usage=USAGE, description=DESCRIPTION, options=options, common=COMMON)
