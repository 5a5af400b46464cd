"""The quickstart's own data, tokenizer and score: everything `./launch.sh` needs and a user would bring along."""
