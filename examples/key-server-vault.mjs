/**
 * A type of vault of your own: reads secrets from an HTTP key server, `GET /secrets/NAME`.
 * It is turned on by POSTERN_VAULT_BACKENDS=/path/to/key-server-vault.mjs.
 */

/** An error of the gateway, told by its code; packages may import the classes from 'postern'. */
const failure = (code, message, more) => Object.assign(new Error(message), { code, ...more })

export default {
  name: 'key-server',
  // JSON Schema of the settings: vaults[].config, or POSTERN_VAULT_KEY_SERVER_URL and so on.
  schema: {
    type: 'object',
    properties: { url: { type: 'string', pattern: '^https?://' }, token: { type: 'string' } },
    required: ['url'],
    additionalProperties: false
  },
  // What a reference may not override: ?url= would send the token elsewhere.
  protectedFields: ['url', 'token'],
  open({ url, token }) {
    return {
      async fetch(resource, _version, signal) {
        const response = await fetch(`${url}/secrets/${encodeURIComponent(resource)}`, {
          headers: token === undefined ? {} : { authorization: `Bearer ${token}` },
          signal
        })
        switch (response.status) {
          case 200:
            // Text, or JSON whose members references address. An ETag saves changes that are none.
            return {
              value: await response.text(),
              ...(response.headers.has('etag') ? { version: response.headers.get('etag') } : {})
            }
          case 404:
            return undefined
          case 401:
          case 403:
            throw failure('POSTERN_VAULT_DENIED', `the key server refused to give ${resource}`)
          default:
            // An error without a code counts as "no answer": the last value stays.
            throw new Error(`the key server answered ${response.status}`)
        }
      }
    }
  }
}
