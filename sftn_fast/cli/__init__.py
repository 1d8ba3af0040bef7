"""Command line: recipes, options and error messages. Imports no torch."""

from sftn_fast.cli.parser import (
    COMMAND_LINE_ONLY,
    DEFAULT_RECIPE,
    DRY_RUN,
    check_distill,
    check_networks,
    describe_twins,
    dump,
    load,
    networks_in,
    parse,
    parse_transfer,
    recipe_names,
    recipe_path,
    split_dry_run,
    to_dict,
)

__all__ = [
    "COMMAND_LINE_ONLY",
    "DEFAULT_RECIPE",
    "DRY_RUN",
    "check_distill",
    "check_networks",
    "describe_twins",
    "dump",
    "load",
    "networks_in",
    "parse",
    "parse_transfer",
    "recipe_names",
    "recipe_path",
    "split_dry_run",
    "to_dict",
]
