"""The InferenceFunctions that there are, and one object's round."""
