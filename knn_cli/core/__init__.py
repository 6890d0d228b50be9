"""What every package stands on: errors, values, registries, atomic files, the parallel map."""
