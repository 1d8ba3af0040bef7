"""Scripts by which a shell completes ``sftn``: those of shtab, plus what these lack.

shtab's script for bash knows options and values only as words of their own, but bash divides ``--export=b`` into three.
In its script for zsh, no option takes its value behind ``=``, and none takes several.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection

import shtab

MOST_VALUES = 5
"""Values of one list that zsh completes."""

BASH = r"""
# Divide --NAME=VALUE into two words, as shtab's function expects them.
_sftn() {
  local -a words=()
  local word last="" prefix="" index
  for (( index = 0; index <= COMP_CWORD; index++ )); do
    word="${COMP_WORDS[index]}"
    if [[ "$word" == "=" && "$last" == --* ]]; then
      (( index == COMP_CWORD )) && words+=("")
    elif [[ "$word" == --*=* ]]; then
      words+=("${word%%=*}" "${word#*=}")
      (( index == COMP_CWORD )) && prefix="${word%%=*}="
    else
      words+=("$word")
    fi
    last="$word"
  done
  local -a COMP_WORDS=("${words[@]}")
  local COMP_CWORD=$(( ${#words[@]} - 1 ))
  _shtab_sftn "$@"
  [[ -z "$prefix" ]] || COMPREPLY=("${COMPREPLY[@]/#/$prefix}")
}

complete -o bashdefault -F _sftn sftn
"""
ZSH_OPTION = re.compile(r'^(?P<start>  "(?:\([^)]*\))?)(?P<name>--[\w.]+)\[(?P<about>.*)\](?P<value>:[^:\]]*:.*)"$')
"""Line of shtab's script for zsh with an option that takes a value."""


def script_for(shell: str, parser: argparse.ArgumentParser, lists: Collection[str]) -> str:
    """Return the script by which ``shell``, bash or zsh, completes the command line of ``parser``.

    Args:
        shell: Name of the shell.
        parser: Parser of ``sftn``.
        lists: Options that take several values, as ``--stages teacher student``.
    """
    script = shtab.complete(parser, shell)
    if shell == "bash":
        return script + BASH
    return "\n".join(_zsh_line(line, lists) for line in script.split("\n"))


def _zsh_line(line: str, lists: Collection[str]) -> str:
    """Return a line of the script in which an option with a value takes it behind ``=`` too, and a list several."""
    found = ZSH_OPTION.match(line)
    if found is None:
        return line
    more = f":{found['value']}" * (MOST_VALUES - 1) if found["name"] in lists else ""
    return f'{found["start"]}{found["name"]}=[{found["about"]}]{found["value"]}{more}"'
