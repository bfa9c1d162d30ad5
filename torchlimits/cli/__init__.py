"""The `torchlimits` command: one file a subcommand; `main` puts them together."""
