"""Corpora: where recordings, their segments and labels stand in folders, lists and manifests. One module per source."""
