"""Files, text, streams and launchers: what the rest of the package stands on and that knows nothing of it."""
