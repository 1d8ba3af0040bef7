"""Parser of the command line: YAML recipes, overridden by options, checked before torch is imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sftn_fast.cli import output_folder
from sftn_fast.cli.keys import build
from sftn_fast.cli.messages import refuse_name, refuse_network
from sftn_fast.cli.network_names import NETWORKS, describe, twin_of
from sftn_fast.cli.options import CommandLine, Option
from sftn_fast.cli.recipe import BASE, Reader, is_of_a_run
from sftn_fast.cli.unread import describe_unread
from sftn_fast.config import ALL_METHODS, SGD, Config, ConfigError, TransferConfig, check, check_path
from sftn_fast.distillers import registry
from sftn_fast.distillers.spec import of_method, of_weights
from sftn_fast.distillers.spec import parse as parse_distill
from sftn_fast.utils import launcher, safe_yaml
from sftn_fast.utils.timm_names import is_timm

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
"""Options that are not configuration keys, with the key to use in a recipe."""
ALIASES = {"compile": "engine.compile"}
OF_AN_OPTIMIZER = tuple(
    f"optim.{key}" for key in ("lr", "momentum", "nesterov", "weight_decay", "arguments", "dot", "warmup_lr", "min_lr")
)
"""Keys that another optimizer than the recipe's does not take from it."""

USAGE = "train [--config RECIPE] [--KEY VALUE ...]"
DESCRIPTION = """
Train student-friendly teachers and distil students from them. Settings come from a recipe (without --config the recipe
"demo"), and each option overrides one key of it. The defaults below apply to keys that the recipe does not set;
--print_config shows the final values. --dry-run estimates time and memory. docs/methods.md lists the methods.
"""
COMMON = ("config", "teacher", "student", "method", "epochs", "seeds", "data.name", "data.root", "output", "dry_run")


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(name: str, *, key: str = "config", beside: Path | None = None) -> Path:
    """Return the file of a recipe: one of the package's by its name, or the user's own by its path.

    A pair of the paper's networks, such as ``vgg13_vgg8``, is short for its CIFAR-100 recipe.

    Args:
        name: Name or path.
        key: Key or option that gave it.
        beside: File in whose folder a relative path is looked for first, before the working folder.

    Raises:
        ConfigError: There is neither. The message begins with ``key``.
    """
    for known in (name, f"{PAIR_PREFIX}{name}"):
        if known in recipe_names():  # not the path of a file, which might lead out of the folder
            return RECIPES / f"{known}.yaml"
    with suppress(OSError, RuntimeError, ValueError):  # too long, an unknown user, a NUL
        path = Path(name).expanduser()
        for found in (beside.parent / path, path) if beside else (path,):
            if found.is_file():
                return found
    searched = f"; a path is relative to {beside.parent.absolute()} or to the working folder" if beside else ""
    raise ConfigError(refuse_name(key, name, recipe_names(), kind="an existing YAML file, or one of") + searched)


class Parsed(NamedTuple):
    """A command line of :mod:`sftn_fast.train`."""

    config: Config
    recipe: str
    """Name of its recipe."""
    unread: list[str]
    """A line for each setting that the user gave and that nothing reads."""


def parse(argv: Sequence[str]) -> tuple[Config, str]:
    """Turn command-line arguments into a checked :class:`Config` and the name of its recipe; see :func:`read`."""
    return read(argv)[:2]


def read(argv: Sequence[str]) -> Parsed:
    """Check command-line arguments and return what they say.

    Raises:
        ConfigError: With one line for any wrong argument or recipe.
        SystemExit: After printing, for ``--help`` and ``--print_config``.
    """
    line = train_line()
    given = line.parse(argv)
    recipes = given.get("config", [DEFAULT_RECIPE])
    reader = Reader(line.keys, ALIASES, COMMAND_LINE_ONLY)
    chains = [_with_bases(recipe, reader) for recipe in recipes]
    files = [each for chain in chains for each in chain]
    of_recipes = _merge_recipes(files)
    given_methods = _resolve_distill(given)
    values = line.merge(_without_other_optimizers(of_recipes, given), given | given_methods)
    if given.get("compile"):
        if "engine.compile" in given:
            raise ConfigError("compile can't be combined with engine.compile; give one of the two")
        values["engine.compile"] = True
    if "output" not in given:
        values["output"] = _own_folder(recipes[-1], files[-1][1], *(_settings(each) for each in (of_recipes, values)))
    if values.get("methods"):
        values.pop("distill", None)  # unused, and not in what is dumped
    try:
        config = build(Config, values)
        check_names(config)
    except ConfigError as error:
        raise ConfigError(f"{_origin(str(error), given, files)}{error}") from error
    if given.get("print_config"):
        print(dump(config), end="")
        raise SystemExit(0)
    chosen = {key for *_, (path, content) in chains if _is_own(path, content) for key in content if key in values}
    unread = describe_unread(config, chosen | given.keys() | given_methods.keys())
    return Parsed(config, " and ".join(recipes), list(unread))


def check_names(config: Config) -> None:
    """Raise :class:`ConfigError` for an unknown network or method, without importing torch.

    With ``plugins`` nothing is checked: their names are known only after they have run, when the training starts.
    """
    if not config.plugins:
        check_networks(config, NETWORKS)
        check_distill(config)


def check_networks(config: Config, known: Collection[str]) -> None:
    """Raise :class:`ConfigError` for a network that is not in ``known`` and not one of timm's, which timm knows."""
    for key, name in networks_in(config):
        if name not in known and not is_timm(name):
            raise ConfigError(refuse_network(key, name, known))


def networks_in(config: Config) -> list[tuple[str, str]]:
    """Return pairs of key and network for each network that ``config`` names."""
    several = [("collaborate.networks", name) for name in config.collaborate.networks]
    return [("teacher", config.teacher), ("student", config.student), *several]


def describe_twins(config: Config) -> list[str]:
    """Return a line for each network whose name is easily confused with another one's."""
    twins = {name: twin for _, name in networks_in(config) if (twin := twin_of(name)) is not None}
    return [f"{describe(name)} is not the same network as {describe(twin)}" for name, twin in twins.items()]


def check_distill(config: Config) -> None:
    """Raise :class:`ConfigError` for an unknown method or option, or a method that can't use ``cache_teacher``."""
    methods = [each for each in config.methods if each != ALL_METHODS]
    parse_distill(config.distill)
    for method in methods:
        parse_distill(method, "methods")
    if config.cache_teacher and "distill" in config.stages:
        ranks = launcher.world_size()
        check(ranks == 1, "cache_teacher", True, f"false where torchrun starts {ranks} processes")
        for distill in methods if config.methods else (config.distill,):
            _check_logits_suffice(distill)


def _check_logits_suffice(distill: str) -> None:
    methods = {term.name: registry.find(term.name) for term in parse_distill(distill).methods}
    taught = {name: method for name, method in methods.items() if not method.only_initialises}
    for name, method in taught.items():
        allowed = f"false with {distill}, since {name} needs more of the teacher than its logits"
        check(not method.needs_features, "cache_teacher", True, allowed)
    check(bool(taught), "cache_teacher", True, f"false with {distill}, which needs no teacher during training")


def split_dry_run(argv: Sequence[str]) -> tuple[list[str], bool]:
    """Return the arguments without ``--dry-run``, and whether it was among them."""
    others = [part for part in argv if part not in DRY_RUN]
    return others, len(others) < len(argv)


def load(path: Path) -> Config:
    """Load the configuration that a run wrote to its folder."""
    return parse(["--config", str(path)])[0]


def dump(config: Config) -> str:
    """Return the whole configuration as a recipe, in the order of its fields; ``distill`` only where it is used."""
    unused = "distill" if config.methods else None
    return safe_yaml.dump({key: value for key, value in to_dict(config).items() if key != unused})


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration dataclass as plain dicts, lists and scalars."""
    return safe_yaml.plain(dataclasses.asdict(config))


def parse_transfer(argv: Sequence[str], description: str) -> TransferConfig:
    """Turn the command line of :mod:`sftn_fast.transfer` into a checked :class:`TransferConfig`.

    Raises:
        ConfigError: With one line for any wrong argument.
    """
    return read_transfer(argv, description)[0]


def read_transfer(argv: Sequence[str], description: str) -> tuple[TransferConfig, list[str]]:
    """Do as :func:`parse_transfer`, and return a line for each setting in ``argv`` that nothing reads, too."""
    line = transfer_line(description)
    given = line.parse(argv)
    config = build(TransferConfig, line.merge({}, given))
    return config, list(describe_unread(config, given))


def transfer_line(description: str = "") -> CommandLine:
    """Return the command line of :mod:`sftn_fast.transfer`."""
    return CommandLine(
        TransferConfig,
        usage="transfer NETWORK [--KEY VALUE ...]",
        description=description,
        common=("data.name", "data.root", "epochs", "lr", "output"),
        positional="network",
    )


def _with_bases(recipe: str, reader: Reader) -> list[tuple[Path, dict[str, Any]]]:
    """Return file and values of a recipe, after those of the recipes that its key ``base`` leads to."""
    path = recipe_path(recipe)
    found = [(path, reader.read(path))]
    while (base := found[0][1].get(BASE)) is not None:
        try:
            path = recipe_path(base, key=BASE, beside=found[0][0])
        except ConfigError as error:
            raise ConfigError(f"{found[0][0]}: {error}") from None
        if any(path.resolve() == other.resolve() for other, _ in found):
            raise ConfigError(f"base of {found[0][0]} leads back to itself; remove one of the keys base")
        found.insert(0, (path, reader.read(path)))
    return found


def _is_own(path: Path, values: Mapping[str, Any]) -> bool:
    """Return whether a user chose the ``values`` of the recipe ``path`` one by one.

    Recipes of the package, configurations that a run wrote, and printed ones have settings that nobody chose.
    """
    printed = train_line().keys.keys() - {"distill", "methods"} <= values.keys()
    return path.parent != RECIPES and not is_of_a_run(path) and not printed


def _merge_recipes(files: Sequence[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    """Return the values of recipes, each of which overrides those before it.

    Raises:
        ConfigError: A recipe names an output folder that can't be one.
    """
    merged: dict[str, Any] = {}
    for path, values in files:
        if "distill" in values and not values.get("methods"):
            merged["methods"] = ()  # of a recipe before it, which would replace distill
        if "output" in values:
            try:
                check_path("output", values["output"])
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
        merged = _without_other_optimizers(merged, values) | values
    return merged


def _without_other_optimizers(before: dict[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values ``before``, without those of their optimizer if ``later`` ones name another."""
    name = str(before.get("optim.name", SGD)).lower()
    if str(later.get("optim.name", name)).lower() == name:
        return before
    return {key: value for key, value in before.items() if key not in OF_AN_OPTIMIZER}


def _own_folder(recipe: str, own: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the default folder of a run; see :mod:`sftn_fast.cli.output_folder`.

    Args:
        recipe: Name of the last recipe.
        own: Values of that recipe, without those of its base.
        before: All settings, from the recipes alone.
        after: All settings, with the command line.
    """
    base = Path(own.get("output", f"runs/{recipe_path(recipe).stem}"))
    return str(output_folder.folder_for(base, before, after))


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of all keys, in the order of the configuration."""
    return {name: values.get(name, key.default) for name, key in train_line().keys.items()}


def _resolve_distill(given: dict[str, Any]) -> dict[str, Any]:
    """Return the ``distill`` that ``--method``, or RepDistiller's ``-r``, ``-a`` and ``-b``, is short for."""
    weights = [_weight(given, option, key) for option, key in (("-r", "gamma"), ("-a", "alpha"), ("-b", "beta"))]
    weighted = any(weight is not None for weight in weights)
    method, distill = given.get("method"), given.get("distill")
    if method and (distill or weighted):
        raise ConfigError("method can't be combined with distill, -r, -a or -b; give one of the two")
    if weighted and not distill:
        raise ConfigError("-r, -a and -b need --distill with the name of a method")
    if method:
        distill = of_method(method)
    elif weighted:
        distill = of_weights(str(distill), *weights)
    if distill is None:
        return {}
    if "methods" in given:
        raise ConfigError("methods can't be combined with distill or method; give one of the two")
    # Drop the recipe's list of methods in favour of the one on the command line.
    return {"distill": distill, "methods": ()}


def _weight(given: dict[str, Any], option: str, key: str) -> float | None:
    try:
        return float(given[key]) if key in given else None
    except ValueError:
        raise ConfigError(f"option {option}: invalid float value: {given[key]!r}") from None


def _origin(message: str, given: Collection[str], files: list[tuple[Path, dict[str, Any]]]) -> str:
    """Return the recipe, with a colon, that gave the key at the start of ``message``; empty if no recipe did."""
    key = message.partition(" ")[0].rstrip(":")
    of_files = [path for path, values in files if key in values]
    return f"{of_files[-1]}: " if of_files and key not in given else ""


@cache
def train_line() -> CommandLine:
    """Return the command line of :mod:`sftn_fast.train`."""
    families = "; ".join(f"{family}: {', '.join(names)}" for family, names in registry.by_family().items())
    options = [
        Option(("--config",), f"Recipe: a YAML file, or one of {', '.join(recipe_names())}.", many=True),
        Option(
            ("--method",),
            "Method with the SFTN paper's settings (methods on features are combined with KD), instead of --distill. "
            f"By what they compare: {families}.",
        ),
        Option(
            ("-r", "--gamma"), "With --distill METHOD, as in RepDistiller: weight of the cross-entropy (default: 1)."
        ),
        Option(("-a", "--alpha"), "Likewise: weight of KD."),
        Option(("-b", "--beta"), "Likewise: weight of the method."),
        Option(
            DRY_RUN, "Print what the run would train and estimate its time and memory, but train nothing.", flag=True
        ),
        Option(("--compile",), "Same as --engine.compile true.", flag=True),
        Option(("--print_config",), "Print the whole configuration as a recipe and exit.", flag=True),
    ]
    return CommandLine(Config, usage=USAGE, description=DESCRIPTION, options=options, common=COMMON)
