"""Characters as TOML files: `NAME.toml`, or a folder `NAME/` with `character.toml` and `exchanges/*.toml`."""
