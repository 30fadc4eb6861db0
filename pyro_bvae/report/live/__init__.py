"""The data of a page that answers: the decoder as steps, the codes of data, the charts."""
