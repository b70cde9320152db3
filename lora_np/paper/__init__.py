r"""The paper, made to show itself: the study and its report."""
