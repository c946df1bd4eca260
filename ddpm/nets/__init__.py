"""The networks: UNets, predictors, and the programs other than torch that run them."""
