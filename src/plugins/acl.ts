import * as Type from 'typebox'
import { type Complaint, definePlugin, type Exchange } from './plugin.ts'

const Groups = Type.Array(Type.String({ minLength: 1 }))

const schema = Type.Object(
  {
    allow: Type.Optional(Groups),
    deny: Type.Optional(Groups),
    hide_groups_header: Type.Boolean({ default: false }),
    always_use_authenticated_groups: Type.Boolean({ default: false }),
    include_consumer_groups: Type.Boolean({ default: false })
  },
  { additionalProperties: false }
)

const REFUSED = 'You cannot consume this service'

/** Lets consumers pass, or stops them, by the groups they belong to. */
export default definePlugin({
  name: 'acl',
  priority: 950,
  consumerScope: false,
  schema,
  check,
  setup(config) {
    const allowing = config.allow !== undefined
    const listed = new Set(config.allow ?? config.deny)
    const preferEstablished = config.always_use_authenticated_groups
    const hide = config.hide_groups_header

    return {
      access(exchange) {
        const { consumer, credential } = exchange
        let groups: readonly string[] | undefined
        let header = 'X-Authenticated-Groups'
        if (consumer === undefined || credential === undefined || preferEstablished) {
          groups = exchange.groups
        }
        if (groups === undefined) {
          if (consumer === undefined) {
            refuse(exchange)
            return
          }
          groups = exchange.directory.groups(consumer.id)
          header = 'X-Consumer-Groups'
          if (allowing && groups.length === 0) {
            refuse(exchange)
            return
          }
        }
        if (allowing !== groups.some(group => listed.has(group))) {
          exchange.error(403, REFUSED)
          return
        }
        // What the client wrote in these fields would pass for the gateway's word.
        exchange.upstream.removeHeader('X-Consumer-Groups')
        exchange.upstream.removeHeader('X-Authenticated-Groups')
        if (!hide && groups.length > 0) exchange.upstream.setHeader(header, groups.join(', '))
      }
    }
  }
})

/** Without a credential the client may still authenticate; with one it is known and has no group. */
function refuse(exchange: Exchange): void {
  if (exchange.credential === undefined) exchange.error(401, 'Unauthorized')
  else exchange.error(403, REFUSED)
}

function check(config: Record<string, unknown>): readonly Complaint[] {
  const complaints: Complaint[] = []
  if (config.allow === undefined && config.deny === undefined) {
    const message = "at least one of these fields must be non-empty: 'config.allow', 'config.deny'"
    complaints.push({ path: '', message, fix: 'List groups under allow or under deny' })
  }
  if (config.allow !== undefined && config.deny !== undefined) {
    const message = "only one of these fields must be non-empty: 'config.allow', 'config.deny'"
    complaints.push({ path: '/deny', message, fix: 'Keep either allow or deny' })
  }
  if (config.include_consumer_groups === true) {
    complaints.push({
      path: '/include_consumer_groups',
      message: 'consumer groups are not supported',
      fix: 'Leave it out, and list the groups as acls of the consumers'
    })
  }
  return complaints
}
