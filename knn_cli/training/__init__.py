"""Training of networks from a recipe: data, augmentation, the loop, checkpoints, the finished bundle."""
