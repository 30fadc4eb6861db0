"""Functions of tensors as machine code: the one room for the private names of torch's compiler."""
