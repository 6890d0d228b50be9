"""`python -m knn_cli` is `knn`."""

from knn_cli.cli.app import main

if __name__ == "__main__":
    main()
