"""Help for curl and other clients without a page."""

# ADDRESS is replaced by that of the service.
HELP = """\
Rill streams Claude's answers as plain text:

  curl -N 'ADDRESS/?q=hello'
  curl -N ADDRESS/stream -H 'Content-Type: text/plain' --data-binary @prompt.txt
  curl -N ADDRESS/stream --json '{"q": "hello", "system": "Be brief.", "max_tokens": 200}'
  curl -N -u :KEY 'ADDRESS/?q=hello'            # with an API key
  curl -N 'ADDRESS/chat/stream?message=hello'   # as server-sent events

The Anthropic SDK's base URL is ADDRESS, the OpenAI SDK's is ADDRESS/v1.
Routes: ADDRESS/openapi.json
"""
