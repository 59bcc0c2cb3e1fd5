"""The towers in Triton: their contract, the features they read, the client that asks them."""
