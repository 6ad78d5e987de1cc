"""Measures: of one finished head (`check`), and of the prior on heads whose truth is known (`prior`)."""
