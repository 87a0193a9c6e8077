"""The lightning indexer of DeepSeek sparse attention: which keys a query attends to.

Paper: https://github.com/deepseek-ai/DeepSeek-V3.2-Exp, DeepSeek_V3_2.pdf, section 1.
"""
