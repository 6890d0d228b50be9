"""Sound: reading and writing it, sample-exact edits, segments and speech activity."""
