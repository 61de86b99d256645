// A real OpenID provider, whose client `page` gets access tokens for the audience `rill`; it reports its addresses.

import http from 'node:http'
import Provider from 'oidc-provider'
import { report } from './report.mjs'

const serve = async () => {
  const server = http.createServer((request, response) => provider.callback()(request, response))
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening))
  const issuer = `http://127.0.0.1:${server.address().port}`

  const resource = { audience: 'rill', scope: '', accessTokenFormat: 'jwt', accessTokenTTL: 600 }
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: 'page',
        client_secret: 'the-secret-of-the-page',
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
      },
    ],
    clientBasedCORS: () => true,
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => 'urn:rill',
        getResourceServerInfo: () => resource,
      },
    },
  })

  const configuration = await (await fetch(`${issuer}/.well-known/openid-configuration`)).json()
  report({ issuer, jwks: configuration.jwks_uri, tokens: configuration.token_endpoint })
  await new Promise(() => {}) // until this process is killed
}

export default { serve }
