"""`knn`: spoken language and dialect identification, and speaker diarization.

Importing this package is free; every room (module) is imported where it is used. `docs/architecture.md` is the map.
"""

__version__ = "0.1.0"
