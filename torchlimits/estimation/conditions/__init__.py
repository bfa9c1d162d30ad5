"""Do the conditions of the limit theorem hold?"""
