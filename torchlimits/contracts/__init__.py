"""What the rooms above agree on: contracts that a person may fulfil with classes of their own."""
