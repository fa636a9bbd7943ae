package netsetup

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// Obstacle is somebody else's filter that drops what networks need.
type Obstacle struct {
	Text   string // what it is, in one line
	Remedy string // the command that lets the network's packets through
}

// ruleset is what is asked of nft --json list ruleset (libnftables-json(5)).
type ruleset struct {
	Nftables []struct {
		Chain *struct {
			Family, Table, Name, Hook, Policy string
		}
		Rule *struct {
			Family, Table, Chain string
			Expr                 json.RawMessage
		}
	}
}

// Obstacles are the filters of others in the network namespace that drop what
// passes a bridge, by all that can be told from outside: none that has a rule
// with the bridge's name in its table, which somebody has written for it.
func Obstacles(bridge string) ([]Obstacle, error) {
	program, err := exec.LookPath("nft")
	if err != nil {
		return nil, ErrNoNft
	}
	out, err := exec.Command(program, "--json", "list", "ruleset").Output()
	if err != nil {
		return nil, fmt.Errorf("list the packet filters: %w", err)
	}
	found, err := obstacles(out, bridge)
	if err != nil {
		return nil, err
	}
	// Rules of the older kind, of which nft knows nothing.
	for _, legacy := range []string{"iptables-legacy", "ip6tables-legacy"} {
		program, err := exec.LookPath(legacy)
		if err != nil {
			continue
		}
		// Without privileges, or without the module, there is nothing to be told.
		rules, err := exec.Command(program, "-S", "FORWARD").Output()
		if err == nil && strings.Contains(string(rules), "-P FORWARD DROP") && !strings.Contains(string(rules), bridge) {
			found = append(found, Obstacle{legacy + " has the policy DROP for what is forwarded",
				fmt.Sprintf("%[1]s -I FORWARD -i %[2]s -j ACCEPT; %[1]s -I FORWARD -o %[2]s -j ACCEPT", legacy, bridge)})
		}
	}
	return found, nil
}

// obstacles reads a set of rules.
func obstacles(list []byte, bridge string) ([]Obstacle, error) {
	var all ruleset
	if err := json.Unmarshal(list, &all); err != nil {
		return nil, fmt.Errorf("read the packet filters: %w", err)
	}
	known := map[string]bool{} // tables with a rule for the bridge
	chains := map[string][]string{}
	for _, o := range all.Nftables {
		switch {
		case o.Rule != nil && strings.Contains(string(o.Rule.Expr), `"`+bridge+`"`):
			known[o.Rule.Family+" "+o.Rule.Table] = true
		case o.Chain != nil:
			table := o.Chain.Family + " " + o.Chain.Table
			chains[table] = append(chains[table], o.Chain.Name)
		}
	}
	var found []Obstacle
	add := func(o Obstacle) {
		if !slices.Contains(found, o) {
			found = append(found, o)
		}
	}
	for _, o := range all.Nftables {
		c := o.Chain
		if c == nil || strings.HasPrefix(c.Table, "vmctl_") {
			continue
		}
		table := c.Family + " " + c.Table
		if known[table] || !slices.Contains([]string{"ip", "ip6", "inet"}, c.Family) {
			continue
		}
		ours := slices.Contains([]string{"forward", "input"}, c.Hook)
		has := func(prefix string) bool {
			return slices.ContainsFunc(chains[table], func(name string) bool { return strings.HasPrefix(name, prefix) })
		}
		switch {
		case c.Table == "firewalld" && ours: // whose policy is accept, and its last rule reject
			add(Obstacle{"firewalld rejects what no zone of it allows", fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-interface=%s && firewall-cmd --reload", bridge)})
		case !ours || c.Policy != "drop":
		case has("ufw"):
			add(Obstacle{"ufw drops what it does not allow", fmt.Sprintf("ufw allow in on %[1]s && ufw route allow in on %[1]s && ufw route allow out on %[1]s", bridge)})
		case has("DOCKER-USER") && c.Hook == "forward":
			program := map[string]string{"ip": "iptables", "ip6": "ip6tables"}[c.Family]
			add(Obstacle{"Docker has set the policy of " + table + " FORWARD to drop",
				fmt.Sprintf("%[1]s -I DOCKER-USER -i %[2]s -j ACCEPT; %[1]s -I DOCKER-USER -o %[2]s -j ACCEPT", program, bridge)})
		case c.Hook == "forward":
			add(Obstacle{fmt.Sprintf("the chain %s %s has the policy drop for what is forwarded", table, c.Name),
				fmt.Sprintf("nft insert rule %[1]s %[2]s iifname %[3]s accept; nft insert rule %[1]s %[2]s oifname %[3]s accept", table, c.Name, bridge)})
		default:
			add(Obstacle{fmt.Sprintf("the chain %s %s has the policy drop for what comes to the host, DHCP and questions for names among it", table, c.Name),
				fmt.Sprintf("nft insert rule %s %s iifname %s accept", table, c.Name, bridge)})
		}
	}
	return found, nil
}
