"""The variational gap and its parts."""
