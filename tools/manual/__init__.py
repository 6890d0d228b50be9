"""The manual: pages that are generated, and the pictures in it."""
