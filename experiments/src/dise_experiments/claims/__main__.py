"""Write docs/paper.md."""

from dise_experiments.claims.page import PAGE, page
from dise_experiments.claims.results import Results

if __name__ == "__main__":
    PAGE.write_text(page(Results.read()))
