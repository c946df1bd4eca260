"""The networks: UNets, predictors, and programs other than torch that run them."""
