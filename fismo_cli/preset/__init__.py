"""Presets: the schema, and how YAML files and command-line overrides become a validated, frozen `Preset`."""
