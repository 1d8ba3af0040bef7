"""Files, text, streams and launchers: helpers that know nothing about the rest of the package."""
