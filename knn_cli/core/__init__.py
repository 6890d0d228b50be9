"""What every package builds on: errors, values, registries, atomic files, output paths, parallel map, tables, names of
languages.
"""
