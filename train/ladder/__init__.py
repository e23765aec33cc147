"""A ladder of small runs: their sizes, the scaling law through their losses, its report and its picture."""
