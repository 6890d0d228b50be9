"""What every package builds on: errors, values, registries, output files, parallel maps, devices, vectors, tables."""
