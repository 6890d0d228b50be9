"""Sound: reading and writing it, sample-exact edits, segments, speech activity."""
