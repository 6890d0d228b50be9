"""Reading and writing sound, sample-exact edits, segments, speech activity and speech regions."""
